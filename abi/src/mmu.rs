//! Requests of `mmu_update` and flags of `update_va_mapping` (`xen.h`).
//!
//! A request is a pair of words. The low two bits of the first say what it is ([`MmuCommand`]); an extended command
//! ([`MmuExtCommand`]) stands in the low eight bits of the second.

use crate::arch::{GuestArch, GuestWord, X86_32, X86_64};
use crate::ids::{DomId, GrantRef, MachineAddr, PAGE_SIZE};
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One request of `mmu_update`'s list (`mmu_update_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C, packed)]
pub struct MmuUpdate<A: GuestArch> {
    /// Machine address of the entry, with the command in its low two bits.
    pub ptr: A::Word,
    /// New contents of the entry, or extended command and arguments.
    pub val: A::Word,
}

layout!(MmuUpdate<X86_32>: 8 { ptr: 0, val: 4 });
layout!(MmuUpdate<X86_64>: 16 { ptr: 0, val: 8 });

/// The bits of [`MmuUpdate::ptr`] that hold the command.
pub const MMU_COMMAND_MASK: u64 = 3;
/// `MMUEXT_CMD_MASK`: the bits of [`MmuUpdate::val`] that hold the extended command.
pub const MMUEXT_CMD_MASK: u64 = 255;
/// `MMUEXT_CMD_SHIFT`: where in [`MmuUpdate::val`] the extended command's argument begins.
pub const MMUEXT_CMD_SHIFT: u32 = 8;

numbers! {
    /// What a request is: the low two bits of [`MmuUpdate::ptr`] (`MMU_*`).
    pub enum MmuCommand: u32 {
        /// `MMU_NORMAL_PT_UPDATE`: a checked store to a page-table entry.
        NormalPtUpdate = 0,
        /// `MMU_MACHPHYS_UPDATE`: sets the machine-to-physical entry of the frame that `ptr` lies in.
        MachphysUpdate = 2,
        /// `MMU_EXTENDED_COMMAND`: the low eight bits of `val` say more.
        ExtendedCommand = 3,
    }
}

numbers! {
    /// An extended command: the low eight bits of [`MmuUpdate::val`] (`MMUEXT_*`).
    pub enum MmuExtCommand: u32 {
        /// `MMUEXT_PIN_L1_TABLE`: validates the frame at `ptr` as a table and keeps it one.
        PinL1Table = 0,
        /// `MMUEXT_PIN_L2_TABLE`.
        PinL2Table = 1,
        /// `MMUEXT_PIN_L3_TABLE`.
        PinL3Table = 2,
        /// `MMUEXT_PIN_L4_TABLE`.
        PinL4Table = 3,
        /// `MMUEXT_UNPIN_TABLE`: undoes a pin of the frame at `ptr`.
        UnpinTable = 4,
        /// `MMUEXT_NEW_BASEPTR`: switches to the top-level table at `ptr`.
        NewBaseptr = 5,
        /// `MMUEXT_TLB_FLUSH`: flushes the whole TLB.
        TlbFlush = 6,
        /// `MMUEXT_INVLPG`: flushes one page; `ptr` is a virtual address.
        Invlpg = 7,
        /// `MMUEXT_FLUSH_CACHE`: writes the caches back and empties them.
        FlushCache = 8,
        /// `MMUEXT_SET_LDT`: `ptr` is the table's linear address, `val` above the command its number of entries.
        SetLdt = 9,
        /// `MMUEXT_SET_FOREIGNDOM`: names the foreign domain, in bits 16 to 31 of `val`.
        SetForeigndom = 10,
        /// `MMUEXT_CLEAR_FOREIGNDOM`: there is no foreign domain any more.
        ClearForeigndom = 11,
        /// `MMUEXT_TRANSFER_PAGE`: gives the frame at `ptr` to a domain that has asked for one by a grant.
        TransferPage = 12,
        /// `MMUEXT_REASSIGN_PAGE`: gives the frame at `ptr` to the foreign domain.
        ReassignPage = 13,
        /// `MMUEXT_NEW_USER_BASEPTR`, x86_64 only and not in the header: applications run on the top-level table at
        /// `ptr`, or (0) on none, and then do not.
        NewUserBaseptr = 14,
    }
}

impl<A: GuestArch> MmuUpdate<A> {
    /// A request from its words; `None` where `ptr` is too wide for the guest's word.
    #[inline]
    pub fn from_parts(command: MmuCommand, ptr: u64, val: A::Word) -> Option<Self> {
        Some(Self { ptr: A::Word::from_u64(ptr & !MMU_COMMAND_MASK | u64::from(command.raw()))?, val })
    }

    /// An extended command; `arg` is what `val` holds above the command.
    #[inline]
    pub fn extended(command: MmuExtCommand, ptr: u64, arg: u64) -> Option<Self> {
        let val = A::Word::from_u64(arg << MMUEXT_CMD_SHIFT | u64::from(command.raw()))?;
        Self::from_parts(MmuCommand::ExtendedCommand, ptr, val)
    }

    /// The command in the low two bits of `ptr`.
    #[inline]
    pub fn command(&self) -> Option<MmuCommand> {
        MmuCommand::from_raw((self.ptr.to_u64() & MMU_COMMAND_MASK) as u32)
    }

    /// The extended command in the low eight bits of `val`.
    #[inline]
    pub fn ext_command(&self) -> Option<MmuExtCommand> {
        MmuExtCommand::from_raw((self.val.to_u64() & MMUEXT_CMD_MASK) as u32)
    }

    /// `ptr` without the command, as a machine address.
    #[inline]
    pub fn address(&self) -> MachineAddr {
        MachineAddr(self.ptr.to_u64() & !MMU_COMMAND_MASK)
    }

    /// `val` above the extended command: for `MMUEXT_SET_LDT` the number of entries.
    #[inline]
    pub fn ext_arg(&self) -> u64 {
        self.val.to_u64() >> MMUEXT_CMD_SHIFT
    }

    /// Bits 16 to 31 of `val`: the domain of `MMUEXT_SET_FOREIGNDOM` and `MMUEXT_TRANSFER_PAGE`.
    #[inline]
    pub fn ext_domain(&self) -> DomId {
        DomId((self.val.to_u64() >> 16) as u16)
    }

    /// The grant reference of `MMUEXT_TRANSFER_PAGE`: bits 8 to 15 of `val`, then bits 2 to 9 of `ptr`.
    #[inline]
    pub fn ext_grant_ref(&self) -> GrantRef {
        GrantRef(((self.val.to_u64() & 0xff00) | ((self.ptr.to_u64() >> 2) & 0xff)) as u16)
    }

    /// A `MMUEXT_TRANSFER_PAGE` of the frame that holds `frame` to a domain's grant.
    pub fn transfer_page(frame: MachineAddr, to: DomId, grant: GrantRef) -> Option<Self> {
        let base = frame.raw() & !(PAGE_SIZE as u64 - 1);
        let arg = u64::from(to.raw()) << 8 | u64::from(grant.raw() >> 8);
        Self::extended(MmuExtCommand::TransferPage, base | u64::from(grant.raw() & 0xff) << 2, arg)
    }
}

bitflags! {
    /// Flags of `update_va_mapping` (`UVMF_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct UpdateVaFlags: u32 {
        /// `UVMF_FLUSH_TLB`: flush the whole TLB.
        const FLUSH_TLB = 1;
        /// `UVMF_INVLPG`: flush the page whose mapping changes.
        const INVLPG = 2;
    }
}
