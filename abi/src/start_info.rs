//! What a domain is told when it starts (`start_info_t`, `xen.h`).

use crate::arch::{GuestArch, Padded, X86_32, X86_64};
use bitflags::bitflags;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `MAX_CMDLINE`: bytes of the command line, its terminating NUL among them.
pub const MAX_CMDLINE: usize = 256;

/// `start_info_t`. Its virtual address is in esi (rsi) when the guest's first instruction runs.
///
/// `nr_pages`, `shared_info`, `flags` and `domain_controller_evtchn` are written again on resume; the rest on the
/// first start only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct StartInfo<A: GuestArch> {
    /// Page frames that belong to the domain.
    pub nr_pages: Padded<A>,
    /// Machine address of the shared page.
    pub shared_info: Padded<A>,
    /// See [`StartInfoFlags`].
    pub flags: u32,
    /// Port of the channel to the domain controller, or 0.
    pub domain_controller_evtchn: u16,
    /// `__pad`.
    pub pad: u16,
    /// Virtual address of the top-level page table.
    pub pt_base: Padded<A>,
    /// Frames that the initial page tables take.
    pub nr_pt_frames: Padded<A>,
    /// Virtual address of the list of the domain's frames: a word each, machine frame numbers by pseudo-physical one.
    pub mfn_list: Padded<A>,
    /// Virtual address of the module (initial ram disk), or 0.
    pub mod_start: Padded<A>,
    /// Bytes of the module.
    pub mod_len: Padded<A>,
    /// Command line, ended by NUL.
    pub cmd_line: [u8; MAX_CMDLINE],
}

layout!(StartInfo<X86_32>: 320 {
    nr_pages: 0, shared_info: 8, flags: 16, domain_controller_evtchn: 20, pad: 22, pt_base: 24, nr_pt_frames: 32,
    mfn_list: 40, mod_start: 48, mod_len: 56, cmd_line: 64,
});
layout!(StartInfo<X86_64>: 320 {
    nr_pages: 0, shared_info: 8, flags: 16, domain_controller_evtchn: 20, pad: 22, pt_base: 24, nr_pt_frames: 32,
    mfn_list: 40, mod_start: 48, mod_len: 56, cmd_line: 64,
});

impl<A: GuestArch> Default for StartInfo<A> {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl<A: GuestArch> StartInfo<A> {
    /// The known bits of `flags`.
    #[inline]
    pub fn flags(&self) -> StartInfoFlags {
        StartInfoFlags::from_bits_truncate(self.flags)
    }

    /// The command line's bytes before its NUL.
    pub fn command_line(&self) -> &[u8] {
        let end = self.cmd_line.iter().position(|&byte| byte == 0).unwrap_or(MAX_CMDLINE);
        &self.cmd_line[..end]
    }

    /// Sets the command line, cut to what fits with its NUL. Returns how many bytes fitted.
    pub fn set_command_line(&mut self, line: &[u8]) -> usize {
        let len = line.len().min(MAX_CMDLINE - 1);
        self.cmd_line = [0; MAX_CMDLINE];
        self.cmd_line[..len].copy_from_slice(&line[..len]);
        len
    }
}

bitflags! {
    /// `flags` of [`StartInfo`] (`SIF_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct StartInfoFlags: u32 {
        /// `SIF_PRIVILEGED`: the domain may make `dom0_op` calls.
        const PRIVILEGED = 1 << 0;
        /// `SIF_INITDOMAIN`: the domain is the initial, controlling one.
        const INITDOMAIN = 1 << 1;
        /// `SIF_BLK_BE_DOMAIN`: the domain is a block back end.
        const BLK_BE_DOMAIN = 1 << 4;
        /// `SIF_NET_BE_DOMAIN`: the domain is a network back end.
        const NET_BE_DOMAIN = 1 << 5;
    }
}
