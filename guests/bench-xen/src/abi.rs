//! The part of the interface of Xen 4.17 (x86_64, paravirtual) that this guest speaks: numbers and layouts, as the
//! public headers of that release have them (`xen.h`, `arch-x86/xen.h`, `arch-x86/xen-x86_64.h`, `event_channel.h`,
//! `sched.h`, `version.h`, `elfnote.h`).

/// Numbers of hypercalls.
pub mod call {
    pub const SET_TRAP_TABLE: usize = 0;
    pub const MMU_UPDATE: usize = 1;
    pub const STACK_SWITCH: usize = 3;
    pub const SET_CALLBACKS: usize = 4;
    pub const FPU_TASKSWITCH: usize = 5;
    pub const MEMORY_OP: usize = 12;
    pub const MULTICALL: usize = 13;
    pub const UPDATE_VA_MAPPING: usize = 14;
    pub const SET_TIMER_OP: usize = 15;
    pub const XEN_VERSION: usize = 17;
    pub const CONSOLE_IO: usize = 18;
    pub const VM_ASSIST: usize = 21;
    pub const UPDATE_VA_MAPPING_OTHERDOMAIN: usize = 22;
    pub const IRET: usize = 23;
    pub const MMUEXT_OP: usize = 26;
    pub const SCHED_OP: usize = 29;
    pub const EVENT_CHANNEL_OP: usize = 32;
    pub const SYSCTL: usize = 35;
    pub const DOMCTL: usize = 36;
    /// The last of the table, which is no call.
    pub const NONE: usize = 63;
}

/// Types of ELF notes whose name is `Xen`.
pub mod note {
    pub const ENTRY: u32 = 1;
    pub const HYPERCALL_PAGE: u32 = 2;
    pub const VIRT_BASE: u32 = 3;
    pub const PADDR_OFFSET: u32 = 4;
    pub const XEN_VERSION: u32 = 5;
    pub const GUEST_OS: u32 = 6;
    pub const LOADER: u32 = 8;
}

/// Bytes of the hypercall page for each number.
pub const CALL_BYTES: usize = 32;
/// `-ENOSYS`.
pub const ENOSYS: isize = -38;
/// The caller itself.
pub const DOMID_SELF: u16 = 0x7ff0;

/// Kernel code. Its privilege level is that of applications: bounce frames show 0 in its place.
pub const KERNEL_CS: u16 = 0xe033;
/// The stack's segment.
pub const KERNEL_SS: u16 = 0xe02b;
/// Applications' code and stack: the same.
pub const USER_CS: u16 = KERNEL_CS;
pub const USER_SS: u16 = KERNEL_SS;

/// The machine-to-physical table, an array of u64.
pub const MACHINE_TO_PHYS: usize = 0xffff_8000_0000_0000;
/// Slots of the top-level table that are Xen's.
pub const XEN_SLOTS: core::ops::RangeInclusive<usize> = 256..=271;

/// What registers and `start_info` say; only the fields that are used.
pub mod start_info {
    pub const SHARED_INFO: usize = 40;
    pub const PT_BASE: usize = 88;
    pub const MFN_LIST: usize = 104;
    pub const CMD_LINE: usize = 128;
    pub const CMD_LINE_BYTES: usize = 1024;
}

/// Offsets in the shared page, of virtual CPU 0 and of the channels.
pub mod shared_info {
    pub const UPCALL_PENDING: usize = 0;
    pub const UPCALL_MASK: usize = 1;
    pub const PENDING_SEL: usize = 8;
    pub const SYSTEM_TIME: usize = 48;
    pub const PENDING: usize = 2048;
    pub const MASK: usize = 2560;
}

/// An element of `set_trap_table`'s list.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TrapInfo {
    pub vector: u8,
    /// Privilege level that `int n` needs.
    pub flags: u8,
    pub cs: u16,
    pub address: u64,
}

/// An element of `mmu_update`'s list.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MmuUpdate {
    /// Machine address of the entry; its lowest bits are the command, 0 for a change of a page table.
    pub ptr: u64,
    pub val: u64,
}

/// An element of `mmuext_op`'s list.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MmuExt {
    pub cmd: u32,
    /// A frame or an address.
    pub arg1: u64,
    pub arg2: u64,
}

/// Commands of `mmuext_op`.
pub mod mmuext {
    pub const PIN_L1_TABLE: u32 = 0;
    pub const PIN_L4_TABLE: u32 = 3;
    pub const UNPIN_TABLE: u32 = 4;
    pub const NEW_BASEPTR: u32 = 5;
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    pub const INVLPG_LOCAL: u32 = 7;
    pub const FLUSH_CACHE: u32 = 12;
    pub const NEW_USER_BASEPTR: u32 = 15;
}

/// Flags of `update_va_mapping`.
pub mod uvmf {
    pub const NONE: u64 = 0;
    pub const TLB_FLUSH: u64 = 1;
    pub const INVLPG: u64 = 2;
}

/// An element of `multicall`'s list.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MulticallEntry {
    pub op: u64,
    pub result: u64,
    pub args: [u64; 6],
}

/// Commands of `memory_op`.
pub mod memory_op {
    pub const INCREASE_RESERVATION: usize = 0;
    pub const DECREASE_RESERVATION: usize = 1;
    pub const CURRENT_RESERVATION: usize = 3;
    pub const POPULATE_PHYSMAP: usize = 6;
}

/// Argument of those that change a reservation.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Reservation {
    /// The list of extents: frames in, frames out.
    pub extents: u64,
    pub count: u64,
    pub order: u32,
    pub flags: u32,
    pub domid: u16,
}

/// What `vm_assist` switches on and off.
pub mod vm_assist {
    pub const ENABLE: usize = 0;
    pub const DISABLE: usize = 1;
    pub const WRITABLE_PAGETABLES: usize = 2;
}

/// Commands of `event_channel_op`.
pub mod evtchn {
    pub const BIND_INTERDOMAIN: usize = 0;
    pub const SEND: usize = 4;
    pub const ALLOC_UNBOUND: usize = 6;
}

/// Argument of `ALLOC_UNBOUND`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AllocUnbound {
    pub dom: u16,
    pub remote_dom: u16,
    /// Set by the call.
    pub port: u32,
}

/// Argument of `BIND_INTERDOMAIN`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct BindInterdomain {
    pub remote_dom: u16,
    pub remote_port: u32,
    /// Set by the call.
    pub local_port: u32,
}

/// Commands of `sched_op`, and why one shuts down.
pub mod sched {
    pub const YIELD: usize = 0;
    pub const BLOCK: usize = 1;
    pub const SHUTDOWN: usize = 2;
    /// Of domain 0: the machine is reset.
    pub const REBOOT: u32 = 1;
}

/// Commands of `xen_version`.
pub mod version {
    pub const VERSION: usize = 0;
    pub const EXTRAVERSION: usize = 1;
    pub const EXTRAVERSION_BYTES: usize = 16;
}

/// Commands of `domctl`.
pub mod domctl {
    pub const CREATE: u32 = 1;
    pub const DESTROY: u32 = 2;
    pub const UNPAUSE: u32 = 4;
    pub const INFO: u32 = 5;
    pub const MAX_MEMORY: u32 = 11;
    pub const SET_CONTEXT: u32 = 12;
    pub const MAX_VCPUS: u32 = 15;
    pub const SET_TSC: u32 = 60;
}

/// Version of `domctl` and `sysctl` in 4.17.
pub const CONTROL_VERSION: u32 = 0x15;
/// Command of `sysctl`: the machine's memory, among other things.
pub const PHYSINFO: u32 = 3;
/// Argument of `SET_TSC`: domains read the CPU's own counter.
pub const TSC_NEVER_EMULATED: u32 = 2;

/// Argument of `domctl`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Domctl {
    pub cmd: u32,
    pub version: u32,
    pub domain: u16,
    pub pad: [u16; 3],
    /// What the command wants and tells, in halves of words.
    pub argument: [u32; 32],
}

/// Argument of `sysctl`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sysctl {
    pub cmd: u32,
    pub version: u32,
    pub argument: [u64; 16],
}

/// A virtual CPU's context: words of `vcpu_guest_context`.
pub mod context {
    pub const WORDS: usize = 646;
    pub const FLAGS: usize = 64;
    pub const RIP: usize = 81;
    pub const CS: usize = 82;
    pub const RFLAGS: usize = 83;
    pub const RSP: usize = 84;
    pub const SS: usize = 85;
    pub const KERNEL_SS: usize = 621;
    pub const KERNEL_SP: usize = 622;
    pub const CR3: usize = 626;
    pub const EVENT_CALLBACK: usize = 639;
    pub const FAILSAFE_CALLBACK: usize = 640;
    /// In the kernel, and not held back.
    pub const IN_KERNEL_ONLINE: u64 = 0x24;
}

/// In `iret`'s frame: back to where `syscall` was; rcx and r11 are not restored.
pub const IN_SYSCALL: u64 = 0x100;

const _: () = {
    assert!(size_of::<TrapInfo>() == 16 && size_of::<MmuUpdate>() == 16 && size_of::<MmuExt>() == 24);
    assert!(size_of::<Domctl>() == 144 && size_of::<Sysctl>() == 136 && size_of::<Reservation>() == 32);
    assert!(size_of::<MulticallEntry>() == 64 && size_of::<BindInterdomain>() == 12 && size_of::<AllocUnbound>() == 8);
};
