//! Compares every type with what a C compiler makes of the headers (`data/layout.json`), for both architectures.
//!
//! The comparison goes both ways: a type or field of the file that is missing here fails, and so does one here that is
//! missing in the file. Names are the headers'; padding is compared by place and size, because some of its names hold
//! line numbers.

use proxenos_abi::context::*;
use proxenos_abi::dom0_ops::{Dom0Op, args::*};
use proxenos_abi::event_channel::*;
use proxenos_abi::grant_table::*;
use proxenos_abi::hypercall::*;
use proxenos_abi::io::blkif::*;
use proxenos_abi::io::domain_controller::{blkif_msg::*, netif_msg::*, *};
use proxenos_abi::io::netif::*;
use proxenos_abi::mmu::*;
use proxenos_abi::payload::Payload;
use proxenos_abi::physdev::*;
use proxenos_abi::sched_ctl::*;
use proxenos_abi::shared_info::*;
use proxenos_abi::start_info::*;
use proxenos_abi::trace::*;
use proxenos_abi::{DomId, GrantRef, GuestArch, Padded, Pirq, Port, Selector, X86_32, X86_64, x86_32, x86_64};
use serde_json::Value;
use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

/// A type's size, and the name, offset and size of everything in it.
struct Layout {
    size: usize,
    parts: Vec<(String, usize, usize)>,
}

trait Describe {
    fn describe() -> Layout;
}

/// The layout of the type that a closure returns: how a field's type is found from its name.
fn of_field<T, F: Describe>(_: fn(T) -> F) -> Layout {
    F::describe()
}

impl Layout {
    fn leaf<T>() -> Self {
        Self { size: size_of::<T>(), parts: Vec::new() }
    }

    /// Adds a field and what is in it.
    fn add(&mut self, name: &str, offset: usize, field: Layout) {
        if field.size == 0 {
            return;
        }
        self.parts.push((format!(".{name}"), offset, field.size));
        self.parts.extend(field.parts.into_iter().map(|(sub, at, size)| (format!(".{name}{sub}"), offset + at, size)));
    }
}

macro_rules! leaves {
    ($($type:ty),+ $(,)?) => {
        $(impl Describe for $type {
            fn describe() -> Layout {
                Layout::leaf::<$type>()
            }
        })+
    };
}

leaves!(u8, u16, u32, u64, i8, i16, i32, i64, DomId, Port, Pirq, GrantRef, Selector);

impl<T: Describe, const N: usize> Describe for [T; N] {
    fn describe() -> Layout {
        let parts = T::describe().parts.into_iter().map(|(sub, at, size)| (format!("[0]{sub}"), at, size)).collect();
        Layout { size: size_of::<Self>(), parts }
    }
}

impl<const N: usize> Describe for Payload<N> {
    fn describe() -> Layout {
        Layout::leaf::<Self>()
    }
}

/// Marks the padding of a padded field until `ours` moves it to where C has it.
const PAD_OF: &str = "+pad";

/// Two fields in C: the value under the field's name, and beside it `__pad_N`.
impl<A: GuestArch> Describe for Padded<A> {
    fn describe() -> Layout {
        let mut parts = Vec::new();
        if size_of::<A::Pad>() != 0 {
            parts.push((PAD_OF.to_string(), offset_of!(Padded<A>, pad), size_of::<A::Pad>()));
        }
        Layout { size: size_of::<A::Word>(), parts }
    }
}

/// Describes structures: fields (`rust` or `"c" = rust`), and the members of a union that is stored as bytes.
macro_rules! structs {
    () => {};
    (arch $type:ident { $($body:tt)* } $($rest:tt)*) => {
        structs!(@impl ($type<X86_32>) { $($body)* });
        structs!(@impl ($type<X86_64>) { $($body)* });
        structs! { $($rest)* }
    };
    (plain $type:ty { $($body:tt)* } $($rest:tt)*) => {
        structs!(@impl ($type) { $($body)* });
        structs! { $($rest)* }
    };
    (@impl ($type:ty) { $($item:tt)* }) => {
        impl Describe for $type {
            fn describe() -> Layout {
                type Me = $type;
                let mut layout = Layout { size: size_of::<Me>(), parts: Vec::new() };
                structs!(@fields layout Me; $($item)*);
                layout
            }
        }
    };
    (@fields $layout:ident $me:ident;) => {};
    (@fields $layout:ident $me:ident;
        $field:ident union { $($member:literal: $mtype:ty),* $(,)? } $(, $($rest:tt)*)?
    ) => {
        let base = offset_of!($me, $field);
        $layout.add(stringify!($field), base, of_field(|t: $me| t.$field));
        $($layout.add(concat!(stringify!($field), ".", $member), base, <$mtype>::describe());)*
        structs!(@fields $layout $me; $($($rest)*)?);
    };
    (@fields $layout:ident $me:ident; $c:literal = $field:ident $(, $($rest:tt)*)?) => {
        $layout.add($c, offset_of!($me, $field), of_field(|t: $me| t.$field));
        structs!(@fields $layout $me; $($($rest)*)?);
    };
    (@fields $layout:ident $me:ident; $field:ident $(, $($rest:tt)*)?) => {
        $layout.add(stringify!($field), offset_of!($me, $field), of_field(|t: $me| t.$field));
        structs!(@fields $layout $me; $($($rest)*)?);
    };
}

structs! {
    arch StartInfo {
        nr_pages, shared_info, flags, domain_controller_evtchn, pad, pt_base, nr_pt_frames, mfn_list, mod_start,
        mod_len, cmd_line
    }
    plain VcpuInfo { evtchn_upcall_pending, evtchn_upcall_mask, pad0, pad1 }
    plain ArchSharedInfo { mfn_to_pfn_start, pfn_to_mfn_frame_list }
    plain SharedInfo {
        vcpu_info, evtchn_pending, evtchn_pending_sel, evtchn_mask, cpu_freq, time_version1, time_version2,
        tsc_timestamp, system_time, wc_sec, wc_usec, domain_time, wall_timeout, domain_timeout, arch
    }
    arch MmuUpdate { ptr, val }
    arch MulticallEntry { op, args }
    arch TrapInfo { vector, flags, cs, pad, address }
    plain x86_32::ExecutionContext {
        ebx, ecx, edx, esi, edi, ebp, eax, ds, es, fs, gs, "_unused" = unused, eip, cs, eflags, esp, ss
    }
    plain x86_64::ExecutionContext {
        r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rip, cs, eflags, rsp, ss
    }
    arch FullExecutionContext {
        flags, cpu_ctxt, fpu_ctxt, trap_ctxt, fast_trap_idx, ldt_base, ldt_ents, gdt_frames, gdt_ents, guestos_ss,
        guestos_esp, pt_base, debugreg, event_callback_cs, event_callback_eip, failsafe_callback_cs,
        failsafe_callback_eip
    }
    plain EvtchnAllocUnbound { dom, pad, port }
    plain EvtchnBindInterdomain { dom1, dom2, port1, port2 }
    plain EvtchnBindVirq { virq, port }
    plain EvtchnBindPirq { pirq, flags, port }
    plain EvtchnClose { dom, pad, port }
    plain EvtchnSend { local_port }
    plain StatusUnbound { dom }
    plain StatusInterdomain { dom, pad, port }
    plain EvtchnStatus {
        dom, pad, port, status,
        u union { "unbound": StatusUnbound, "interdomain": StatusInterdomain, "pirq": Pirq, "virq": u32 }
    }
    plain EvtchnOp {
        cmd, "__reserved" = reserved,
        u union {
            "alloc_unbound": EvtchnAllocUnbound, "bind_interdomain": EvtchnBindInterdomain, "bind_virq": EvtchnBindVirq,
            "bind_pirq": EvtchnBindPirq, "close": EvtchnClose, "send": EvtchnSend, "status": EvtchnStatus,
            "__dummy": [u8; 24],
        }
    }
    plain GrantEntry { flags, domid, frame }
    arch MapGrantRef { host_virt_addr, dom, "ref" = grant, flags, handle, dev_bus_addr }
    arch UnmapGrantRef { host_virt_addr, dev_bus_addr, handle, status, pad }
    arch SetupTable { dom, nr_frames, pad, status, frame_list }
    plain PciCfgregRead { bus, dev, func, reg, len, value }
    plain PciCfgregWrite { bus, dev, func, reg, len, value }
    plain PciInitialiseDevice { bus, dev, func }
    plain PciProbeRootBuses { busmask }
    plain IrqStatusQuery { irq, flags }
    plain PhysdevOp {
        cmd, pad,
        u union {
            "pci_cfgreg_read": PciCfgregRead, "pci_cfgreg_write": PciCfgregWrite,
            "pci_initialise_device": PciInitialiseDevice, "pci_probe_root_buses": PciProbeRootBuses,
            "irq_status_query": IrqStatusQuery, "__dummy": [u8; 32],
        }
    }
    plain BvtCtl { ctx_allow }
    plain RoundRobinCtl { slice }
    plain SchedCtl { sched_id, direction, u union { "bvt": BvtCtl, "rrobin": RoundRobinCtl } }
    plain BvtAdjdom { mcu_adv, warpback, warpvalue, warpl, warpu }
    plain AtroposAdjdom { nat_period, nat_slice, latency, xtratime }
    plain SchedAdjdom {
        sched_id, direction, domain, pad0, pad1, u union { "bvt": BvtAdjdom, "atropos": AtroposAdjdom }
    }
    plain TraceRecord { cycles, event, d1, d2, d3, d4, d5 }
    arch TraceBuffer { data, size, head, head_ptr, vdata }
    arch GetMemList { domain, pad0, pad1, max_pfns, buffer, num_pfns }
    arch CreateDomain { memory_kb, cpu, pad0, domain, pad1 }
    plain DestroyDomain { domain, pad }
    plain PauseDomain { domain, pad }
    plain UnpauseDomain { domain, pad }
    arch GetDomainInfo { domain, pad, flags, ctxt, tot_pages, max_pages, shared_info_frame, cpu_time }
    arch BuildDomain { domain, pad0, pad1, ctxt }
    plain Iopl { domain, pad, iopl }
    plain Msr { write, cpu_mask, msr, in1, in2, out1, out2 }
    plain DebugOp { domain, opcode, pad, in1, in2, in3, in4, status, out1, out2 }
    plain SetTime { secs, usecs, system_time }
    arch GetPageFrameInfo { pfn, domain, pad, "type" = frame_type }
    arch ReadConsole { "str" = text, count, cmd }
    plain PinCpuDomain { domain, pad, cpu }
    arch GetTbufs { mach_addr, size }
    arch PhysInfo { ht_per_core, cores, cpu_khz, pad, total_pages, free_pages }
    plain PcidevAccess { domain, pad, bus, dev, func, enable }
    plain SchedId { sched_id }
    plain ShadowControlStats { fault_count, dirty_count, dirty_net_count, dirty_block_count }
    arch ShadowControl { domain, pad, op, dirty_bitmap, pages, stats }
    arch SetDomainInitialMem { domain, pad0, pad1, initial_memkb }
    arch SetDomainMaxMem { domain, pad0, pad1, max_memkb }
    arch GetPageFrameInfo2 { domain, pad0, pad1, num, array }
    plain SetDomainVmAssist { domain, pad0, cmd, "type" = assist }
    plain ControlMsg { "type" = msg_type, subtype, id, length, msg }
    plain ControlIf { tx_ring, rx_ring, tx_req_prod, tx_resp_prod, rx_req_prod, rx_resp_prod }
    plain MemRequest { target, status }
    plain BlkifFeInterfaceStatus { handle, status, evtchn, domid }
    plain BlkifFeDriverStatus { status, max_handle }
    arch BlkifFeInterfaceConnect { handle, pad, shmem_frame }
    plain BlkifFeInterfaceDisconnect { handle }
    plain BlkifFeInterfaceQuery { handle, status, evtchn, domid }
    plain BlkifExtent { sector_start, sector_length, device, pad }
    plain BlkifBeCreate { domid, pad, blkif_handle, status }
    plain BlkifBeDestroy { domid, pad, blkif_handle, status }
    arch BlkifBeConnect { domid, pad, blkif_handle, shmem_frame, evtchn, status }
    plain BlkifBeDisconnect { domid, pad, blkif_handle, status }
    plain BlkifBeVbdCreate { domid, pad, blkif_handle, vdevice, readonly, status }
    plain BlkifBeVbdDestroy { domid, pad0, blkif_handle, vdevice, pad1, status }
    plain BlkifBeVbdGrow { domid, pad0, blkif_handle, extent, vdevice, pad1, status }
    plain BlkifBeVbdShrink { domid, pad0, blkif_handle, vdevice, pad1, status }
    plain BlkifBeDriverStatus { status }
    plain NetifFeInterfaceStatus { handle, status, evtchn, mac, domid }
    plain NetifFeDriverStatus { status, max_handle }
    arch NetifFeInterfaceConnect { handle, pad, tx_shmem_frame, rx_shmem_frame }
    plain NetifFeInterfaceDisconnect { handle }
    plain NetifFeInterfaceQuery { handle, status, evtchn, mac, domid }
    plain NetifBeCreate { domid, pad0, netif_handle, mac, pad1, status }
    plain NetifBeDestroy { domid, pad, netif_handle, status }
    arch NetifBeConnect { domid, pad0, netif_handle, tx_shmem_frame, rx_shmem_frame, evtchn, pad1, status }
    plain NetifBeDisconnect { domid, pad, netif_handle, status }
    plain NetifBeDriverStatus { status }
    arch BlkifRequest { operation, nr_segments, device, id, sector_number, frame_and_sects }
    arch BlkifResponse { id, operation, status }
    arch BlkifRing { req_prod, resp_prod, ring }
    plain Vdisk { capacity, device, info }
    arch NetifTxRequest { addr, id, size }
    plain NetifTxResponse { id, status, pad }
    plain NetifRxRequest { id }
    arch NetifRxResponse { addr, id, status }
    arch NetifTxInterface { req_prod, req_cons, resp_prod, event, ring }
    arch NetifRxInterface { req_prod, resp_prod, event, ring }
}

macro_rules! slots {
    ($($slot:ident { req: $req:ty, resp: $resp:ty } for $arch:ty),+ $(,)?) => {
        $(impl Describe for $slot<$arch> {
            fn describe() -> Layout {
                let mut layout = Layout { size: size_of::<Self>(), parts: Vec::new() };
                layout.add("req", 0, <$req>::describe());
                layout.add("resp", 0, <$resp>::describe());
                layout
            }
        })+
    };
}

slots! {
    BlkifSlot { req: BlkifRequest<X86_32>, resp: BlkifResponse<X86_32> } for X86_32,
    BlkifSlot { req: BlkifRequest<X86_64>, resp: BlkifResponse<X86_64> } for X86_64,
    NetifTxSlot { req: NetifTxRequest<X86_32>, resp: NetifTxResponse } for X86_32,
    NetifTxSlot { req: NetifTxRequest<X86_64>, resp: NetifTxResponse } for X86_64,
    NetifRxSlot { req: NetifRxRequest, resp: NetifRxResponse<X86_32> } for X86_32,
    NetifRxSlot { req: NetifRxRequest, resp: NetifRxResponse<X86_64> } for X86_64,
}

/// `dom0_op_t`: one type, whose union's members differ by architecture.
fn dom0_op<A: GuestArch>() -> Layout
where
    GetMemList<A>: Describe,
    CreateDomain<A>: Describe,
    GetDomainInfo<A>: Describe,
    BuildDomain<A>: Describe,
    GetPageFrameInfo<A>: Describe,
    ReadConsole<A>: Describe,
    GetTbufs<A>: Describe,
    PhysInfo<A>: Describe,
    ShadowControl<A>: Describe,
    SetDomainInitialMem<A>: Describe,
    SetDomainMaxMem<A>: Describe,
    GetPageFrameInfo2<A>: Describe,
{
    let mut layout = Layout { size: size_of::<Dom0Op>(), parts: Vec::new() };
    layout.add("cmd", offset_of!(Dom0Op, cmd), u32::describe());
    layout.add("interface_version", offset_of!(Dom0Op, interface_version), u32::describe());
    let u = offset_of!(Dom0Op, u);
    layout.add("u", u, of_field(|op: Dom0Op| op.u));
    for (member, member_layout) in [
        ("dummy", <[u32; 18]>::describe()),
        ("createdomain", CreateDomain::<A>::describe()),
        ("pausedomain", PauseDomain::describe()),
        ("unpausedomain", UnpauseDomain::describe()),
        ("destroydomain", DestroyDomain::describe()),
        ("getmemlist", GetMemList::<A>::describe()),
        ("schedctl", SchedCtl::describe()),
        ("adjustdom", SchedAdjdom::describe()),
        ("builddomain", BuildDomain::<A>::describe()),
        ("getdomaininfo", GetDomainInfo::<A>::describe()),
        ("getpageframeinfo", GetPageFrameInfo::<A>::describe()),
        ("iopl", Iopl::describe()),
        ("msr", Msr::describe()),
        ("debug", DebugOp::describe()),
        ("settime", SetTime::describe()),
        ("readconsole", ReadConsole::<A>::describe()),
        ("pincpudomain", PinCpuDomain::describe()),
        ("gettbufs", GetTbufs::<A>::describe()),
        ("physinfo", PhysInfo::<A>::describe()),
        ("pcidev_access", PcidevAccess::describe()),
        ("sched_id", SchedId::describe()),
        ("shadow_control", ShadowControl::<A>::describe()),
        ("setdomaininitialmem", SetDomainInitialMem::<A>::describe()),
        ("setdomainmaxmem", SetDomainMaxMem::<A>::describe()),
        ("getpageframeinfo2", GetPageFrameInfo2::<A>::describe()),
        ("setdomainvmassist", SetDomainVmAssist::describe()),
    ] {
        layout.add(&format!("u.{member}"), u, member_layout);
    }
    layout
}

/// Every type of the file, by its C name, for one architecture.
macro_rules! types {
    ($arch:ty) => {
        types!(@list $arch;
            plain {
                "BLKIF_RING_IDX": BlkifRingIdx,
                "CONTROL_RING_IDX": ControlRingIdx,
                "NETIF_RING_IDX": NetifRingIdx,
                "domid_t": DomId,
                "grant_ref_t": GrantRef,
                "tsc_timestamp_t": TscTimestamp,
                "memory_t": <$arch as GuestArch>::Word,
                "cpureg_t": <$arch as GuestArch>::Word,
                "execution_context_t": <$arch as GuestArch>::ExecutionContext,
                "arch_shared_info_t": ArchSharedInfo,
                "shared_info_t": SharedInfo,
                "struct shared_info_st": SharedInfo,
                "struct vcpu_info": VcpuInfo,
                "evtchn_alloc_unbound_t": EvtchnAllocUnbound,
                "evtchn_bind_interdomain_t": EvtchnBindInterdomain,
                "evtchn_bind_virq_t": EvtchnBindVirq,
                "evtchn_bind_pirq_t": EvtchnBindPirq,
                "evtchn_close_t": EvtchnClose,
                "evtchn_send_t": EvtchnSend,
                "evtchn_status_t": EvtchnStatus,
                "evtchn_op_t": EvtchnOp,
                "grant_entry_t": GrantEntry,
                "physdevop_pci_cfgreg_read_t": PciCfgregRead,
                "physdevop_pci_cfgreg_write_t": PciCfgregWrite,
                "physdevop_pci_initialise_device_t": PciInitialiseDevice,
                "physdevop_pci_probe_root_buses_t": PciProbeRootBuses,
                "physdevop_irq_status_query_t": IrqStatusQuery,
                "physdev_op_t": PhysdevOp,
                "struct _physdev_op_st": PhysdevOp,
                "struct bvt_ctl": BvtCtl,
                "struct rrobin_ctl": RoundRobinCtl,
                "struct sched_ctl_cmd": SchedCtl,
                "dom0_schedctl_t": SchedCtl,
                "struct bvt_adjdom": BvtAdjdom,
                "struct atropos_adjdom": AtroposAdjdom,
                "struct sched_adjdom_cmd": SchedAdjdom,
                "dom0_adjustdom_t": SchedAdjdom,
                "struct t_rec": TraceRecord,
                "dom0_destroydomain_t": DestroyDomain,
                "dom0_pausedomain_t": PauseDomain,
                "dom0_unpausedomain_t": UnpauseDomain,
                "dom0_iopl_t": Iopl,
                "dom0_msr_t": Msr,
                "dom0_debug_t": DebugOp,
                "dom0_settime_t": SetTime,
                "dom0_pincpudomain_t": PinCpuDomain,
                "dom0_pcidev_access_t": PcidevAccess,
                "dom0_sched_id_t": SchedId,
                "dom0_shadow_control_stats_t": ShadowControlStats,
                "struct dom0_shadow_control": ShadowControlStats,
                "dom0_setdomainvmassist_t": SetDomainVmAssist,
                "control_msg_t": ControlMsg,
                "control_if_t": ControlIf,
                "mem_request_t": MemRequest,
                "blkif_fe_interface_status_t": BlkifFeInterfaceStatus,
                "blkif_fe_driver_status_t": BlkifFeDriverStatus,
                "blkif_fe_interface_disconnect_t": BlkifFeInterfaceDisconnect,
                "blkif_fe_interface_query_t": BlkifFeInterfaceQuery,
                "blkif_extent_t": BlkifExtent,
                "blkif_be_create_t": BlkifBeCreate,
                "blkif_be_destroy_t": BlkifBeDestroy,
                "blkif_be_disconnect_t": BlkifBeDisconnect,
                "blkif_be_vbd_create_t": BlkifBeVbdCreate,
                "blkif_be_vbd_destroy_t": BlkifBeVbdDestroy,
                "blkif_be_vbd_grow_t": BlkifBeVbdGrow,
                "blkif_be_vbd_shrink_t": BlkifBeVbdShrink,
                "blkif_be_driver_status_t": BlkifBeDriverStatus,
                "netif_fe_interface_status_t": NetifFeInterfaceStatus,
                "netif_fe_driver_status_t": NetifFeDriverStatus,
                "netif_fe_interface_disconnect_t": NetifFeInterfaceDisconnect,
                "netif_fe_interface_query_t": NetifFeInterfaceQuery,
                "netif_be_create_t": NetifBeCreate,
                "netif_be_destroy_t": NetifBeDestroy,
                "netif_be_disconnect_t": NetifBeDisconnect,
                "netif_be_driver_status_t": NetifBeDriverStatus,
                "vdisk_t": Vdisk,
                "netif_tx_response_t": NetifTxResponse,
                "netif_rx_request_t": NetifRxRequest,
            }
            arch {
                "start_info_t": StartInfo,
                "mmu_update_t": MmuUpdate,
                "multicall_entry_t": MulticallEntry,
                "trap_info_t": TrapInfo,
                "full_execution_context_t": FullExecutionContext,
                "gnttab_map_grant_ref_t": MapGrantRef,
                "gnttab_unmap_grant_ref_t": UnmapGrantRef,
                "gnttab_setup_table_t": SetupTable,
                "struct t_buf": TraceBuffer,
                "dom0_getmemlist_t": GetMemList,
                "dom0_createdomain_t": CreateDomain,
                "dom0_getdomaininfo_t": GetDomainInfo,
                "dom0_builddomain_t": BuildDomain,
                "dom0_getpageframeinfo_t": GetPageFrameInfo,
                "dom0_readconsole_t": ReadConsole,
                "dom0_gettbufs_t": GetTbufs,
                "dom0_physinfo_t": PhysInfo,
                "dom0_shadow_control_t": ShadowControl,
                "dom0_setdomaininitialmem_t": SetDomainInitialMem,
                "dom0_setdomainmaxmem_t": SetDomainMaxMem,
                "dom0_getpageframeinfo2_t": GetPageFrameInfo2,
                "blkif_fe_interface_connect_t": BlkifFeInterfaceConnect,
                "blkif_be_connect_t": BlkifBeConnect,
                "netif_fe_interface_connect_t": NetifFeInterfaceConnect,
                "netif_be_connect_t": NetifBeConnect,
                "blkif_request_t": BlkifRequest,
                "blkif_response_t": BlkifResponse,
                "blkif_ring_t": BlkifRing,
                "netif_tx_request_t": NetifTxRequest,
                "netif_rx_response_t": NetifRxResponse,
                "netif_tx_interface_t": NetifTxInterface,
                "netif_rx_interface_t": NetifRxInterface,
            }
        )
    };
    (@list $arch:ty; plain { $($pname:literal: $ptype:ty,)* } arch { $($aname:literal: $atype:ident,)* }) => {
        vec![
            $(($pname, <$ptype>::describe()),)*
            $(($aname, <$atype<$arch>>::describe()),)*
            ("dom0_op_t", dom0_op::<$arch>()),
        ]
    };
}

/// A field's name, with padding renamed to its place: `a.__pad_12` at 4 becomes `a.pad@4`.
fn normalise(path: &str, offset: usize) -> String {
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    if name.trim_start_matches('_').starts_with("pad") { format!("{parent}.pad@{offset}") } else { path.to_string() }
}

type Fields = BTreeMap<String, (usize, usize)>;

fn ours(layout: &Layout) -> Fields {
    layout
        .parts
        .iter()
        .map(|(path, offset, size)| {
            let path = path.strip_prefix('.').expect("a field begins with a dot");
            // The padding of a padded field belongs to the structure that the field is in.
            let path = path.strip_suffix(PAD_OF).map_or(path.to_string(), |field| {
                field.rsplit_once('.').map_or("pad".to_string(), |(parent, _)| format!("{parent}.pad"))
            });
            (normalise(&path, *offset), (*offset, *size))
        })
        .collect()
}

fn theirs(description: &Value) -> Fields {
    let Some(fields) = description.get("fields") else { return Fields::new() };
    fields
        .as_object()
        .expect("fields are an object")
        .iter()
        .map(|(path, place)| {
            let number = |index: usize| place[index].as_u64().expect("a number") as usize;
            (normalise(path, number(0)), (number(0), number(1)))
        })
        .collect()
}

/// Where our host differs on purpose: x86_64's block ring has 32 slots, so that it fits a page.
fn exceptions(arch: &str, name: &str, size: &mut usize, fields: &mut Fields) {
    if (arch, name) == ("x86_64", "blkif_ring_t") {
        let slot = size_of::<BlkifSlot<X86_64>>();
        assert_eq!(*size, 8 + 64 * slot, "the header's ring");
        *size = 8 + 32 * slot;
        fields.insert("ring".into(), (8, 32 * slot));
    }
}

fn compare(arch: &str, types: Vec<(&'static str, Layout)>) -> usize {
    let file: Value = serde_json::from_str(include_str!("data/layout.json")).expect("layout.json parses");
    let mut expected: BTreeMap<&String, &Value> = file[arch].as_object().expect("an architecture").iter().collect();
    assert!(expected.len() > 100, "the file holds the types");
    let mut compared = 0;
    for (name, layout) in types {
        let description = expected.remove(&name.to_string()).unwrap_or_else(|| panic!("{arch}: no {name} in the file"));
        let mut size = description["size"].as_u64().expect("a size") as usize;
        let mut fields = theirs(description);
        exceptions(arch, name, &mut size, &mut fields);
        assert_eq!(layout.size, size, "{arch}: size of {name}");
        assert_eq!(ours(&layout), fields, "{arch}: fields of {name}");
        compared += 1 + fields.len();
    }
    assert!(expected.is_empty(), "{arch}: types of the headers that the crate lacks: {:?}", expected.keys());
    compared
}

#[test]
fn x86_32_types_lie_as_in_c() {
    assert!(compare("x86_32", types!(X86_32)) > 900);
}

#[test]
fn x86_64_types_lie_as_in_c() {
    assert!(compare("x86_64", types!(X86_64)) > 800);
}

#[test]
fn version_1a_moves_the_selectors_behind_ss() {
    type V19 = x86_32::ExecutionContext;
    type V1A = x86_32::ExecutionContextV1A;
    assert_eq!(size_of::<V19>(), size_of::<V1A>());
    let order =
        [offset_of!(V1A, ss), offset_of!(V1A, es), offset_of!(V1A, ds), offset_of!(V1A, fs), offset_of!(V1A, gs)];
    assert_eq!(order, [48, 52, 56, 60, 64]);
    let old = V19 { ds: 1, es: 2, fs: 3, gs: 4, eip: 5, ss: 6, ..V19::default() };
    assert_eq!(V19::from(V1A::from(old)), old);
    assert_eq!(V1A::from(old), V1A { ds: 1, es: 2, fs: 3, gs: 4, eip: 5, ss: 6, ..V1A::default() });
}
