//! The page that a domain shares with the hypervisor (`shared_info_t`, `xen.h`).
//!
//! Both sides change it at any time, so it is never accessed as one value but field by field, atomically or by
//! volatile accesses, at the offsets that [`SharedInfo`] has as constants. The layout is the same for both
//! architectures.

use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `MAX_VIRT_CPUS`: virtual CPUs of a domain.
pub const MAX_VIRT_CPUS: usize = 1;

/// `tsc_timestamp_t`: a reading of the time-stamp counter, in cycles.
pub type TscTimestamp = u64;

/// What belongs to one virtual CPU (`struct vcpu_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct VcpuInfo {
    /// Non-zero: an event is waiting. Set by the hypervisor, cleared by the guest before it looks for work.
    pub evtchn_upcall_pending: u8,
    /// Non-zero: no upcall. Set and cleared by the guest; set by an upcall, cleared by a call that blocks.
    pub evtchn_upcall_mask: u8,
    /// Padding.
    pub pad0: u8,
    /// Padding.
    pub pad1: u8,
}

layout!(VcpuInfo: 4 { evtchn_upcall_pending: 0, evtchn_upcall_mask: 1, pad0: 2, pad1: 3 });

/// The architecture's part (`arch_shared_info_t`), the same for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct ArchSharedInfo {
    /// Machine frame number of the machine-to-physical table's first frame. In domain 0's page.
    pub mfn_to_pfn_start: u64,
    /// Machine frame number of a frame of machine frame numbers: those of the frames that hold the guest's own
    /// physical-to-machine table. Written by the guest, for tools that save or inspect it.
    pub pfn_to_mfn_frame_list: u64,
}

layout!(ArchSharedInfo: 16 { mfn_to_pfn_start: 0, pfn_to_mfn_frame_list: 8 });

/// `shared_info_t`. The guest finds its machine address in `start_info_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct SharedInfo {
    /// Per virtual CPU.
    pub vcpu_info: [VcpuInfo; MAX_VIRT_CPUS],
    /// A bit a port: an event is waiting. Set by the hypervisor, cleared by the guest.
    pub evtchn_pending: [u32; 32],
    /// A bit a word of `evtchn_pending`: the word has gained an unmasked bit.
    pub evtchn_pending_sel: u32,
    /// A bit a port: events on it cause no upcall. Set and cleared by the guest only.
    pub evtchn_mask: [u32; 32],
    /// Frequency of the time-stamp counter, in Hz.
    pub cpu_freq: u64,
    /// Incremented before the time fields change.
    pub time_version1: u32,
    /// Incremented after the time fields have changed: they are consistent while both versions agree.
    pub time_version2: u32,
    /// The time-stamp counter when the time fields were last updated, in cycles.
    pub tsc_timestamp: TscTimestamp,
    /// System time at `tsc_timestamp`: nanoseconds since the machine booted.
    pub system_time: u64,
    /// Wall clock at `tsc_timestamp`: seconds since 1970-01-01 00:00:00 UTC.
    pub wc_sec: u32,
    /// Wall clock at `tsc_timestamp`: microseconds within the second.
    pub wc_usec: u32,
    /// Virtual time of the domain: nanoseconds it has run.
    pub domain_time: u64,
    /// System time, in nanoseconds, at which the guest wants a timer event.
    pub wall_timeout: u64,
    /// Domain virtual time, in nanoseconds, at which the guest wants a timer event.
    pub domain_timeout: u64,
    /// The architecture's part.
    pub arch: ArchSharedInfo,
}

layout!(SharedInfo: 344 {
    vcpu_info: 0, evtchn_pending: 4, evtchn_pending_sel: 132, evtchn_mask: 136, cpu_freq: 264, time_version1: 272,
    time_version2: 276, tsc_timestamp: 280, system_time: 288, wc_sec: 296, wc_usec: 300, domain_time: 304,
    wall_timeout: 312, domain_timeout: 320, arch: 328, arch.mfn_to_pfn_start: 328, arch.pfn_to_mfn_frame_list: 336,
});

/// Byte offsets of the fields, for atomic access to each.
impl SharedInfo {
    /// Of virtual CPU 0's `evtchn_upcall_pending` (`u8`).
    pub const EVTCHN_UPCALL_PENDING: usize = offset_of!(Self, vcpu_info) + offset_of!(VcpuInfo, evtchn_upcall_pending);
    /// Of virtual CPU 0's `evtchn_upcall_mask` (`u8`).
    pub const EVTCHN_UPCALL_MASK: usize = offset_of!(Self, vcpu_info) + offset_of!(VcpuInfo, evtchn_upcall_mask);
    /// Of `evtchn_pending` (32 `u32`).
    pub const EVTCHN_PENDING: usize = offset_of!(Self, evtchn_pending);
    /// Of `evtchn_pending_sel` (`u32`).
    pub const EVTCHN_PENDING_SEL: usize = offset_of!(Self, evtchn_pending_sel);
    /// Of `evtchn_mask` (32 `u32`).
    pub const EVTCHN_MASK: usize = offset_of!(Self, evtchn_mask);
    /// Of `cpu_freq` (`u64`).
    pub const CPU_FREQ: usize = offset_of!(Self, cpu_freq);
    /// Of `time_version1` (`u32`).
    pub const TIME_VERSION1: usize = offset_of!(Self, time_version1);
    /// Of `time_version2` (`u32`).
    pub const TIME_VERSION2: usize = offset_of!(Self, time_version2);
    /// Of `tsc_timestamp` (`u64`).
    pub const TSC_TIMESTAMP: usize = offset_of!(Self, tsc_timestamp);
    /// Of `system_time` (`u64`).
    pub const SYSTEM_TIME: usize = offset_of!(Self, system_time);
    /// Of `wc_sec` (`u32`).
    pub const WC_SEC: usize = offset_of!(Self, wc_sec);
    /// Of `wc_usec` (`u32`).
    pub const WC_USEC: usize = offset_of!(Self, wc_usec);
    /// Of `domain_time` (`u64`).
    pub const DOMAIN_TIME: usize = offset_of!(Self, domain_time);
    /// Of `wall_timeout` (`u64`).
    pub const WALL_TIMEOUT: usize = offset_of!(Self, wall_timeout);
    /// Of `domain_timeout` (`u64`).
    pub const DOMAIN_TIMEOUT: usize = offset_of!(Self, domain_timeout);
    /// Of `arch.mfn_to_pfn_start` (`u64`).
    pub const MFN_TO_PFN_START: usize = offset_of!(Self, arch.mfn_to_pfn_start);
    /// Of `arch.pfn_to_mfn_frame_list` (`u64`).
    pub const PFN_TO_MFN_FRAME_LIST: usize = offset_of!(Self, arch.pfn_to_mfn_frame_list);
    /// Of the control interface (`control_if_t`, `io/domain_controller.h`), in the same page.
    pub const CONTROL_IF: usize = CONTROL_IF_OFFSET;
}

/// Byte offset of the control interface within the page that holds `shared_info_t`.
pub const CONTROL_IF_OFFSET: usize = 2048;
