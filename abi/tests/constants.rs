//! Compares every constant with its value in the headers (`data/constants.json`), for both architectures.
//!
//! A constant of the file that is missing here fails, and so does one here that is missing in the file.

use proxenos_abi::arch::{FIRST_RESERVED_GDT_ENTRY, LAST_RESERVED_GDT_ENTRY, NR_RESERVED_GDT_ENTRIES};
use proxenos_abi::context::ContextFlags;
use proxenos_abi::dom0_ops::{DOM0_INTERFACE_VERSION, Dom0Command, args::*};
use proxenos_abi::event_channel::*;
use proxenos_abi::grant_table::*;
use proxenos_abi::hypercall::*;
use proxenos_abi::ids::NR_VIRQS;
use proxenos_abi::io::blkif::*;
use proxenos_abi::io::domain_controller::{blkif_msg::*, netif_msg::*, *};
use proxenos_abi::io::netif::*;
use proxenos_abi::mmu::*;
use proxenos_abi::physdev::*;
use proxenos_abi::sched_ctl::*;
use proxenos_abi::shared_info::MAX_VIRT_CPUS;
use proxenos_abi::start_info::{MAX_CMDLINE, StartInfoFlags};
use proxenos_abi::{DomId, GuestArch, Virq, X86_32, X86_64, x86_32, x86_64};
use serde_json::Value;
use std::collections::BTreeMap;

type Constants = Vec<(&'static str, i128)>;

/// A table of names and values.
macro_rules! table {
    ($($name:literal = $value:expr),* $(,)?) => {
        vec![$(($name, ($value) as i128)),*]
    };
}

fn both<A: GuestArch>() -> Constants {
    let mut table = interface();
    table.extend(devices());
    table.extend(table![
        "FLAT_GUESTOS_CS" = A::FLAT_GUESTOS_CS.raw(),
        "FLAT_GUESTOS_DS" = A::FLAT_GUESTOS_DS.raw(),
        "FLAT_USER_CS" = A::FLAT_USER_CS.raw(),
        "FLAT_USER_DS" = A::FLAT_USER_DS.raw(),
        "machine_to_phys_mapping" = A::MACHINE_TO_PHYS,
        "NR_RESERVED_GDT_ENTRIES" = NR_RESERVED_GDT_ENTRIES,
        "FIRST_RESERVED_GDT_ENTRY" = FIRST_RESERVED_GDT_ENTRY,
        "LAST_RESERVED_GDT_ENTRY" = LAST_RESERVED_GDT_ENTRY,
        "ECF_I387_VALID" = ContextFlags::I387_VALID.bits(),
    ]);
    table
}

/// `xen.h` and the headers of calls.
fn interface() -> Constants {
    table![
        "ARGS_PER_MULTICALL_ENTRY" = ARGS_PER_MULTICALL_ENTRY,
        "BIND_PIRQ__WILL_SHARE" = BindPirqFlags::WILL_SHARE.bits(),
        "CONSOLEIO_read" = ConsoleIo::Read.raw(),
        "CONSOLEIO_write" = ConsoleIo::Write.raw(),
        "DOM0_ADJUSTDOM" = Dom0Command::AdjustDom.raw(),
        "DOM0_BUILDDOMAIN" = Dom0Command::BuildDomain.raw(),
        "DOM0_CREATEDOMAIN" = Dom0Command::CreateDomain.raw(),
        "DOM0_DEBUG" = Dom0Command::Debug.raw(),
        "DOM0_DESTROYDOMAIN" = Dom0Command::DestroyDomain.raw(),
        "DOM0_GETDOMAININFO" = Dom0Command::GetDomainInfo.raw(),
        "DOM0_GETMEMLIST" = Dom0Command::GetMemList.raw(),
        "DOM0_GETPAGEFRAMEINFO" = Dom0Command::GetPageFrameInfo.raw(),
        "DOM0_GETPAGEFRAMEINFO2" = Dom0Command::GetPageFrameInfo2.raw(),
        "DOM0_GETTBUFS" = Dom0Command::GetTbufs.raw(),
        "DOM0_INTERFACE_VERSION" = DOM0_INTERFACE_VERSION,
        "DOM0_IOPL" = Dom0Command::Iopl.raw(),
        "DOM0_MSR" = Dom0Command::Msr.raw(),
        "DOM0_PAUSEDOMAIN" = Dom0Command::PauseDomain.raw(),
        "DOM0_PCIDEV_ACCESS" = Dom0Command::PcidevAccess.raw(),
        "DOM0_PHYSINFO" = Dom0Command::PhysInfo.raw(),
        "DOM0_PINCPUDOMAIN" = Dom0Command::PinCpuDomain.raw(),
        "DOM0_READCONSOLE" = Dom0Command::ReadConsole.raw(),
        "DOM0_SCHEDCTL" = Dom0Command::SchedCtl.raw(),
        "DOM0_SCHED_ID" = Dom0Command::SchedId.raw(),
        "DOM0_SETDOMAININITIALMEM" = Dom0Command::SetDomainInitialMem.raw(),
        "DOM0_SETDOMAINMAXMEM" = Dom0Command::SetDomainMaxMem.raw(),
        "DOM0_SETDOMAINVMASSIST" = Dom0Command::SetDomainVmAssist.raw(),
        "DOM0_SETTIME" = Dom0Command::SetTime.raw(),
        "DOM0_SHADOW_CONTROL" = Dom0Command::ShadowControl.raw(),
        "DOM0_SHADOW_CONTROL_OP_CLEAN" = ShadowControlOp::Clean.raw(),
        "DOM0_SHADOW_CONTROL_OP_ENABLE_LOGDIRTY" = ShadowControlOp::EnableLogdirty.raw(),
        "DOM0_SHADOW_CONTROL_OP_ENABLE_TEST" = ShadowControlOp::EnableTest.raw(),
        "DOM0_SHADOW_CONTROL_OP_ENABLE_TRANSLATE" = ShadowControlOp::EnableTranslate.raw(),
        "DOM0_SHADOW_CONTROL_OP_FLUSH" = ShadowControlOp::Flush.raw(),
        "DOM0_SHADOW_CONTROL_OP_OFF" = ShadowControlOp::Off.raw(),
        "DOM0_SHADOW_CONTROL_OP_PEEK" = ShadowControlOp::Peek.raw(),
        "DOM0_UNPAUSEDOMAIN" = Dom0Command::UnpauseDomain.raw(),
        "DOMFLAGS_BLOCKED" = DomainFlags::BLOCKED.bits(),
        "DOMFLAGS_CPUMASK" = DOMFLAGS_CPUMASK,
        "DOMFLAGS_CPUSHIFT" = DOMFLAGS_CPUSHIFT,
        "DOMFLAGS_CRASHED" = DomainFlags::CRASHED.bits(),
        "DOMFLAGS_DYING" = DomainFlags::DYING.bits(),
        "DOMFLAGS_PAUSED" = DomainFlags::PAUSED.bits(),
        "DOMFLAGS_RUNNING" = DomainFlags::RUNNING.bits(),
        "DOMFLAGS_SHUTDOWN" = DomainFlags::SHUTDOWN.bits(),
        "DOMFLAGS_SHUTDOWNMASK" = DOMFLAGS_SHUTDOWNMASK,
        "DOMFLAGS_SHUTDOWNSHIFT" = DOMFLAGS_SHUTDOWNSHIFT,
        "DOMID_FIRST_RESERVED" = DomId::FIRST_RESERVED.raw(),
        "DOMID_IO" = DomId::IO.raw(),
        "DOMID_SELF" = DomId::SELF.raw(),
        "DOMID_XEN" = DomId::XEN.raw(),
        "EVTCHNOP_alloc_unbound" = EventChannelOp::AllocUnbound.raw(),
        "EVTCHNOP_bind_interdomain" = EventChannelOp::BindInterdomain.raw(),
        "EVTCHNOP_bind_pirq" = EventChannelOp::BindPirq.raw(),
        "EVTCHNOP_bind_virq" = EventChannelOp::BindVirq.raw(),
        "EVTCHNOP_close" = EventChannelOp::Close.raw(),
        "EVTCHNOP_send" = EventChannelOp::Send.raw(),
        "EVTCHNOP_status" = EventChannelOp::Status.raw(),
        "EVTCHNSTAT_closed" = ChannelStatus::Closed.raw(),
        "EVTCHNSTAT_interdomain" = ChannelStatus::Interdomain.raw(),
        "EVTCHNSTAT_pirq" = ChannelStatus::Pirq.raw(),
        "EVTCHNSTAT_unbound" = ChannelStatus::Unbound.raw(),
        "EVTCHNSTAT_virq" = ChannelStatus::Virq.raw(),
        "GNTMAP_application_map" = GrantMapFlags::APPLICATION_MAP.bits(),
        "GNTMAP_device_map" = GrantMapFlags::DEVICE_MAP.bits(),
        "GNTMAP_host_map" = GrantMapFlags::HOST_MAP.bits(),
        "GNTMAP_readonly" = GrantMapFlags::READONLY.bits(),
        "GNTST_bad_domain" = GrantStatus::BadDomain.raw(),
        "GNTST_bad_gntref" = GrantStatus::BadGrantRef.raw(),
        "GNTST_bad_handle" = GrantStatus::BAD_HANDLE.raw(),
        "GNTST_general_error" = GrantStatus::GeneralError.raw(),
        "GNTST_no_device_space" = GrantStatus::NoDeviceSpace.raw(),
        "GNTST_okay" = GrantStatus::Okay.raw(),
        "GNTST_permission_denied" = GrantStatus::PermissionDenied.raw(),
        "GNTTABOP_map_grant_ref" = GrantTableCommand::MapGrantRef.raw(),
        "GNTTABOP_setup_table" = GrantTableCommand::SetupTable.raw(),
        "GNTTABOP_unmap_grant_ref" = GrantTableCommand::UnmapGrantRef.raw(),
        "GTF_accept_transfer" = GrantFlags::ACCEPT_TRANSFER.bits(),
        "GTF_invalid" = GrantType::Invalid.raw(),
        "GTF_permit_access" = GrantFlags::PERMIT_ACCESS.bits(),
        "GTF_reading" = GrantFlags::READING.bits(),
        "GTF_readonly" = GrantFlags::READONLY.bits(),
        "GTF_transfer_committed" = GrantFlags::TRANSFER_COMMITTED.bits(),
        "GTF_transfer_completed" = GrantFlags::TRANSFER_COMPLETED.bits(),
        "GTF_type_mask" = GrantFlags::TYPE_MASK.bits(),
        "GTF_writing" = GrantFlags::WRITING.bits(),
        "L1TAB" = L1TAB,
        "L2TAB" = L2TAB,
        "L3TAB" = L3TAB,
        "L4TAB" = L4TAB,
        "LPINTAB" = LPINTAB as i32,
        "LTABTYPE_MASK" = LTABTYPE_MASK as i32,
        "LTAB_MASK" = LTAB_MASK as i32,
        "MAX_CMDLINE" = MAX_CMDLINE,
        "MAX_VIRT_CPUS" = MAX_VIRT_CPUS,
        "MAX_VMASST_TYPE" = MAX_VMASST_TYPE,
        "MEMOP_decrease_reservation" = DomMemOp::DecreaseReservation.raw(),
        "MEMOP_increase_reservation" = DomMemOp::IncreaseReservation.raw(),
        "MMUEXT_CLEAR_FOREIGNDOM" = MmuExtCommand::ClearForeigndom.raw(),
        "MMUEXT_CMD_MASK" = MMUEXT_CMD_MASK,
        "MMUEXT_CMD_SHIFT" = MMUEXT_CMD_SHIFT,
        "MMUEXT_FLUSH_CACHE" = MmuExtCommand::FlushCache.raw(),
        "MMUEXT_INVLPG" = MmuExtCommand::Invlpg.raw(),
        "MMUEXT_NEW_BASEPTR" = MmuExtCommand::NewBaseptr.raw(),
        "MMUEXT_PIN_L1_TABLE" = MmuExtCommand::PinL1Table.raw(),
        "MMUEXT_PIN_L2_TABLE" = MmuExtCommand::PinL2Table.raw(),
        "MMUEXT_PIN_L3_TABLE" = MmuExtCommand::PinL3Table.raw(),
        "MMUEXT_PIN_L4_TABLE" = MmuExtCommand::PinL4Table.raw(),
        "MMUEXT_REASSIGN_PAGE" = MmuExtCommand::ReassignPage.raw(),
        "MMUEXT_SET_FOREIGNDOM" = MmuExtCommand::SetForeigndom.raw(),
        "MMUEXT_SET_LDT" = MmuExtCommand::SetLdt.raw(),
        "MMUEXT_TLB_FLUSH" = MmuExtCommand::TlbFlush.raw(),
        "MMUEXT_TRANSFER_PAGE" = MmuExtCommand::TransferPage.raw(),
        "MMUEXT_UNPIN_TABLE" = MmuExtCommand::UnpinTable.raw(),
        "MMU_EXTENDED_COMMAND" = MmuCommand::ExtendedCommand.raw(),
        "MMU_MACHPHYS_UPDATE" = MmuCommand::MachphysUpdate.raw(),
        "MMU_NORMAL_PT_UPDATE" = MmuCommand::NormalPtUpdate.raw(),
        "NOTAB" = NOTAB,
        "NR_EVENT_CHANNELS" = NR_EVENT_CHANNELS,
        "NR_VIRQS" = NR_VIRQS,
        "PHYSDEVOP_IRQ_NEEDS_UNMASK_NOTIFY" = IrqStatusFlags::NEEDS_UNMASK_NOTIFY.bits(),
        "PHYSDEVOP_IRQ_STATUS_QUERY" = PhysdevCommand::IrqStatusQuery.raw(),
        "PHYSDEVOP_IRQ_UNMASK_NOTIFY" = PhysdevCommand::IrqUnmaskNotify.raw(),
        "PHYSDEVOP_PCI_CFGREG_READ" = PhysdevCommand::PciCfgregRead.raw(),
        "PHYSDEVOP_PCI_CFGREG_WRITE" = PhysdevCommand::PciCfgregWrite.raw(),
        "PHYSDEVOP_PCI_INITIALISE_DEVICE" = PhysdevCommand::PciInitialiseDevice.raw(),
        "PHYSDEVOP_PCI_PROBE_ROOT_BUSES" = PhysdevCommand::PciProbeRootBuses.raw(),
        "SCHEDOP_block" = SchedOp::Block.raw(),
        "SCHEDOP_cmdmask" = SCHEDOP_CMDMASK,
        "SCHEDOP_reasonshift" = SCHEDOP_REASONSHIFT,
        "SCHEDOP_shutdown" = SchedOp::Shutdown.raw(),
        "SCHEDOP_yield" = SchedOp::Yield.raw(),
        "SCHED_ATROPOS" = SchedulerId::Atropos.raw(),
        "SCHED_BVT" = SchedulerId::Bvt.raw(),
        "SCHED_INFO_GET" = SchedDirection::Get.raw(),
        "SCHED_INFO_PUT" = SchedDirection::Put.raw(),
        "SCHED_RROBIN" = SchedulerId::RoundRobin.raw(),
        "SIF_BLK_BE_DOMAIN" = StartInfoFlags::BLK_BE_DOMAIN.bits(),
        "SIF_INITDOMAIN" = StartInfoFlags::INITDOMAIN.bits(),
        "SIF_NET_BE_DOMAIN" = StartInfoFlags::NET_BE_DOMAIN.bits(),
        "SIF_PRIVILEGED" = StartInfoFlags::PRIVILEGED.bits(),
        "UVMF_FLUSH_TLB" = UpdateVaFlags::FLUSH_TLB.bits(),
        "UVMF_INVLPG" = UpdateVaFlags::INVLPG.bits(),
        "VIRQ_CONSOLE" = Virq::Console.raw(),
        "VIRQ_DEBUG" = Virq::Debug.raw(),
        "VIRQ_DOM_EXC" = Virq::DomExc.raw(),
        "VIRQ_IO_ERR" = Virq::IoErr.raw(),
        "VIRQ_MISDIRECT" = Virq::Misdirect.raw(),
        "VIRQ_PARITY_ERR" = Virq::ParityErr.raw(),
        "VIRQ_TIMER" = Virq::Timer.raw(),
        "VMASST_CMD_disable" = VmAssistCommand::Disable.raw(),
        "VMASST_CMD_enable" = VmAssistCommand::Enable.raw(),
        "VMASST_TYPE_4gb_segments" = VmAssistType::Segments4Gb.raw(),
        "VMASST_TYPE_4gb_segments_notify" = VmAssistType::Segments4GbNotify.raw(),
        "VMASST_TYPE_writable_pagetables" = VmAssistType::WritablePagetables.raw(),
        "XTAB" = XTAB as i32,
        "_GNTMAP_application_map" = GNTMAP_APPLICATION_MAP_BIT,
        "_GNTMAP_device_map" = GNTMAP_DEVICE_MAP_BIT,
        "_GNTMAP_host_map" = GNTMAP_HOST_MAP_BIT,
        "_GNTMAP_readonly" = GNTMAP_READONLY_BIT,
        "_GTF_reading" = GTF_READING_BIT,
        "_GTF_readonly" = GTF_READONLY_BIT,
        "_GTF_transfer_committed" = GTF_TRANSFER_COMMITTED_BIT,
        "_GTF_transfer_completed" = GTF_TRANSFER_COMPLETED_BIT,
        "_GTF_writing" = GTF_WRITING_BIT,
        "__HYPERVISOR_console_io" = Hypercall::ConsoleIo.raw(),
        "__HYPERVISOR_dom0_op" = Hypercall::Dom0Op.raw(),
        "__HYPERVISOR_dom_mem_op" = Hypercall::DomMemOp.raw(),
        "__HYPERVISOR_event_channel_op" = Hypercall::EventChannelOp.raw(),
        "__HYPERVISOR_fpu_taskswitch" = Hypercall::FpuTaskswitch.raw(),
        "__HYPERVISOR_get_debugreg" = Hypercall::GetDebugreg.raw(),
        "__HYPERVISOR_grant_table_op" = Hypercall::GrantTableOp.raw(),
        "__HYPERVISOR_mmu_update" = Hypercall::MmuUpdate.raw(),
        "__HYPERVISOR_multicall" = Hypercall::Multicall.raw(),
        "__HYPERVISOR_physdev_op" = Hypercall::PhysdevOp.raw(),
        "__HYPERVISOR_sched_op" = Hypercall::SchedOp.raw(),
        "__HYPERVISOR_set_callbacks" = Hypercall::SetCallbacks.raw(),
        "__HYPERVISOR_set_debugreg" = Hypercall::SetDebugreg.raw(),
        "__HYPERVISOR_set_fast_trap" = Hypercall::SetFastTrap.raw(),
        "__HYPERVISOR_set_gdt" = Hypercall::SetGdt.raw(),
        "__HYPERVISOR_set_timer_op" = Hypercall::SetTimerOp.raw(),
        "__HYPERVISOR_set_trap_table" = Hypercall::SetTrapTable.raw(),
        "__HYPERVISOR_stack_switch" = Hypercall::StackSwitch.raw(),
        "__HYPERVISOR_update_descriptor" = Hypercall::UpdateDescriptor.raw(),
        "__HYPERVISOR_update_va_mapping" = Hypercall::UpdateVaMapping.raw(),
        "__HYPERVISOR_update_va_mapping_otherdomain" = Hypercall::UpdateVaMappingOtherdomain.raw(),
        "__HYPERVISOR_vm_assist" = Hypercall::VmAssist.raw(),
        "__HYPERVISOR_xen_version" = Hypercall::XenVersion.raw(),
    ]
}

/// The headers in `io/`.
fn devices() -> Constants {
    table![
        "BLKIF_BE_STATUS_ERROR" = BlkifBeStatus::Error.raw(),
        "BLKIF_BE_STATUS_EXTENT_NOT_FOUND" = BlkifBeStatus::ExtentNotFound.raw(),
        "BLKIF_BE_STATUS_INTERFACE_CONNECTED" = BlkifBeStatus::InterfaceConnected.raw(),
        "BLKIF_BE_STATUS_INTERFACE_EXISTS" = BlkifBeStatus::InterfaceExists.raw(),
        "BLKIF_BE_STATUS_INTERFACE_NOT_FOUND" = BlkifBeStatus::InterfaceNotFound.raw(),
        "BLKIF_BE_STATUS_MAPPING_ERROR" = BlkifBeStatus::MappingError.raw(),
        "BLKIF_BE_STATUS_OKAY" = BlkifBeStatus::Okay.raw(),
        "BLKIF_BE_STATUS_OUT_OF_MEMORY" = BlkifBeStatus::OutOfMemory.raw(),
        "BLKIF_BE_STATUS_VBD_EXISTS" = BlkifBeStatus::VbdExists.raw(),
        "BLKIF_BE_STATUS_VBD_NOT_FOUND" = BlkifBeStatus::VbdNotFound.raw(),
        "BLKIF_DRIVER_STATUS_DOWN" = BlkifDriverStatus::Down.raw(),
        "BLKIF_DRIVER_STATUS_UP" = BlkifDriverStatus::Up.raw(),
        "BLKIF_INTERFACE_STATUS_CHANGED" = BlkifInterfaceStatus::Changed.raw(),
        "BLKIF_INTERFACE_STATUS_CLOSED" = BlkifInterfaceStatus::Closed.raw(),
        "BLKIF_INTERFACE_STATUS_CONNECTED" = BlkifInterfaceStatus::Connected.raw(),
        "BLKIF_INTERFACE_STATUS_DISCONNECTED" = BlkifInterfaceStatus::Disconnected.raw(),
        "BLKIF_MAX_SEGMENTS_PER_REQUEST" = BLKIF_MAX_SEGMENTS_PER_REQUEST,
        "BLKIF_OP_PROBE" = BlkifOperation::Probe.raw(),
        "BLKIF_OP_READ" = BlkifOperation::Read.raw(),
        "BLKIF_OP_WRITE" = BlkifOperation::Write.raw(),
        "BLKIF_RING_SIZE" = BLKIF_RING_SIZE,
        "BLKIF_RSP_ERROR" = BlkifResponseStatus::Error.raw(),
        "BLKIF_RSP_OKAY" = BlkifResponseStatus::Okay.raw(),
        "CMSG_BLKIF_BE" = MessageType::BlkifBe.raw(),
        "CMSG_BLKIF_BE_CONNECT" = BlkifBeMessage::Connect.raw(),
        "CMSG_BLKIF_BE_CREATE" = BlkifBeMessage::Create.raw(),
        "CMSG_BLKIF_BE_DESTROY" = BlkifBeMessage::Destroy.raw(),
        "CMSG_BLKIF_BE_DISCONNECT" = BlkifBeMessage::Disconnect.raw(),
        "CMSG_BLKIF_BE_DRIVER_STATUS" = BlkifBeMessage::DriverStatus.raw(),
        "CMSG_BLKIF_BE_VBD_CREATE" = BlkifBeMessage::VbdCreate.raw(),
        "CMSG_BLKIF_BE_VBD_DESTROY" = BlkifBeMessage::VbdDestroy.raw(),
        "CMSG_BLKIF_BE_VBD_GROW" = BlkifBeMessage::VbdGrow.raw(),
        "CMSG_BLKIF_BE_VBD_SHRINK" = BlkifBeMessage::VbdShrink.raw(),
        "CMSG_BLKIF_FE" = MessageType::BlkifFe.raw(),
        "CMSG_BLKIF_FE_DRIVER_STATUS" = BlkifFeMessage::DriverStatus.raw(),
        "CMSG_BLKIF_FE_INTERFACE_CONNECT" = BlkifFeMessage::InterfaceConnect.raw(),
        "CMSG_BLKIF_FE_INTERFACE_DISCONNECT" = BlkifFeMessage::InterfaceDisconnect.raw(),
        "CMSG_BLKIF_FE_INTERFACE_QUERY" = BlkifFeMessage::InterfaceQuery.raw(),
        "CMSG_BLKIF_FE_INTERFACE_STATUS" = BlkifFeMessage::InterfaceStatus.raw(),
        "CMSG_CONSOLE" = MessageType::Console.raw(),
        "CMSG_CONSOLE_DATA" = ConsoleMessage::Data.raw(),
        "CMSG_MEM_REQUEST" = MessageType::MemRequest.raw(),
        "CMSG_MEM_REQUEST_SET" = MemRequestMessage::Set.raw(),
        "CMSG_NETIF_BE" = MessageType::NetifBe.raw(),
        "CMSG_NETIF_BE_CONNECT" = NetifBeMessage::Connect.raw(),
        "CMSG_NETIF_BE_CREATE" = NetifBeMessage::Create.raw(),
        "CMSG_NETIF_BE_DESTROY" = NetifBeMessage::Destroy.raw(),
        "CMSG_NETIF_BE_DISCONNECT" = NetifBeMessage::Disconnect.raw(),
        "CMSG_NETIF_BE_DRIVER_STATUS" = NetifBeMessage::DriverStatus.raw(),
        "CMSG_NETIF_FE" = MessageType::NetifFe.raw(),
        "CMSG_NETIF_FE_DRIVER_STATUS" = NetifFeMessage::DriverStatus.raw(),
        "CMSG_NETIF_FE_INTERFACE_CONNECT" = NetifFeMessage::InterfaceConnect.raw(),
        "CMSG_NETIF_FE_INTERFACE_DISCONNECT" = NetifFeMessage::InterfaceDisconnect.raw(),
        "CMSG_NETIF_FE_INTERFACE_QUERY" = NetifFeMessage::InterfaceQuery.raw(),
        "CMSG_NETIF_FE_INTERFACE_STATUS" = NetifFeMessage::InterfaceStatus.raw(),
        "CMSG_SHUTDOWN" = MessageType::Shutdown.raw(),
        "CMSG_SHUTDOWN_POWEROFF" = ShutdownMessage::Poweroff.raw(),
        "CMSG_SHUTDOWN_REBOOT" = ShutdownMessage::Reboot.raw(),
        "CMSG_SHUTDOWN_SUSPEND" = ShutdownMessage::Suspend.raw(),
        "CONTROL_RING_SIZE" = CONTROL_RING_SIZE,
        "NETIF_BE_STATUS_ERROR" = NetifBeStatus::Error.raw(),
        "NETIF_BE_STATUS_INTERFACE_CONNECTED" = NetifBeStatus::InterfaceConnected.raw(),
        "NETIF_BE_STATUS_INTERFACE_EXISTS" = NetifBeStatus::InterfaceExists.raw(),
        "NETIF_BE_STATUS_INTERFACE_NOT_FOUND" = NetifBeStatus::InterfaceNotFound.raw(),
        "NETIF_BE_STATUS_MAPPING_ERROR" = NetifBeStatus::MappingError.raw(),
        "NETIF_BE_STATUS_OKAY" = NetifBeStatus::Okay.raw(),
        "NETIF_BE_STATUS_OUT_OF_MEMORY" = NetifBeStatus::OutOfMemory.raw(),
        "NETIF_DRIVER_STATUS_DOWN" = NetifDriverStatus::Down.raw(),
        "NETIF_DRIVER_STATUS_UP" = NetifDriverStatus::Up.raw(),
        "NETIF_INTERFACE_STATUS_CHANGED" = NetifInterfaceStatus::Changed.raw(),
        "NETIF_INTERFACE_STATUS_CLOSED" = NetifInterfaceStatus::Closed.raw(),
        "NETIF_INTERFACE_STATUS_CONNECTED" = NetifInterfaceStatus::Connected.raw(),
        "NETIF_INTERFACE_STATUS_DISCONNECTED" = NetifInterfaceStatus::Disconnected.raw(),
        "NETIF_RSP_DROPPED" = NetifStatus::Dropped.raw(),
        "NETIF_RSP_ERROR" = NetifStatus::Error.raw(),
        "NETIF_RSP_OKAY" = NetifStatus::Okay.raw(),
        "NETIF_RX_RING_SIZE" = NETIF_RX_RING_SIZE,
        "NETIF_TX_RING_SIZE" = NETIF_TX_RING_SIZE,
        "SHUTDOWN_poweroff" = ShutdownReason::Poweroff.raw(),
        "SHUTDOWN_reboot" = ShutdownReason::Reboot.raw(),
        "SHUTDOWN_suspend" = ShutdownReason::Suspend.raw(),
        "VDISK_FLAG_RO" = VdiskFlags::RO.bits(),
        "VDISK_FLAG_VIRT" = VdiskFlags::VIRT.bits(),
        "VDISK_TYPE_CDROM" = VdiskType::Cdrom.raw(),
        "VDISK_TYPE_DISK" = VdiskType::Disk.raw(),
        "VDISK_TYPE_FLOPPY" = VdiskType::Floppy.raw(),
        "VDISK_TYPE_MASK" = VDISK_TYPE_MASK,
        "VDISK_TYPE_OPTICAL" = VdiskType::Optical.raw(),
        "VDISK_TYPE_TAPE" = VdiskType::Tape.raw(),
    ]
}

fn compare(arch: &str, table: Constants) {
    let file: Value = serde_json::from_str(include_str!("data/constants.json")).expect("constants.json parses");
    let mut expected: BTreeMap<&str, i128> = file[arch]
        .as_object()
        .expect("an architecture")
        .iter()
        .map(|(name, value)| {
            let value = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from));
            (name.as_str(), value.unwrap_or_else(|| panic!("{name} is no integer")))
        })
        .collect();
    assert!(expected.len() > 280, "the file holds the constants");
    for (name, value) in table {
        let theirs =
            expected.remove(name).unwrap_or_else(|| panic!("{arch}: no {name} in the file, or it is here twice"));
        assert_eq!(value, theirs, "{arch}: {name}");
    }
    assert!(expected.is_empty(), "{arch}: constants of the headers that the crate lacks: {:?}", expected.keys());
}

#[test]
fn x86_32_constants_are_the_headers() {
    let mut table = both::<X86_32>();
    table.extend(table![
        "FLAT_RING1_CS" = x86_32::FLAT_RING1_CS.raw(),
        "FLAT_RING1_DS" = x86_32::FLAT_RING1_DS.raw(),
        "FLAT_RING3_CS" = x86_32::FLAT_RING3_CS.raw(),
        "FLAT_RING3_DS" = x86_32::FLAT_RING3_DS.raw(),
        "HYPERVISOR_VIRT_START" = x86_32::HYPERVISOR_VIRT_START,
    ]);
    compare("x86_32", table);
}

#[test]
fn x86_64_constants_are_the_headers() {
    let mut table = both::<X86_64>();
    table.extend(table![
        "FLAT_RING3_CS32" = x86_64::FLAT_RING3_CS32.raw(),
        "FLAT_RING3_CS64" = x86_64::FLAT_RING3_CS64.raw(),
        "FLAT_RING3_DS" = x86_64::FLAT_RING3_DS.raw(),
        "FLAT_GUESTOS_CS32" = x86_64::FLAT_GUESTOS_CS32.raw(),
        "FLAT_USER_CS32" = x86_64::FLAT_USER_CS32.raw(),
    ]);
    compare("x86_64", table);
}

/// x86_64's block ring departs from the header on purpose, the largest size that fits a page.
#[test]
fn block_rings_are_as_large_as_fits_a_page() {
    assert_eq!((X86_32::RING_SIZE, X86_64::RING_SIZE), (64, 32));
    let ring = |slot: usize, slots: usize| 8 + slot * slots;
    assert!(ring(size_of::<BlkifSlot<X86_64>>(), 2 * X86_64::RING_SIZE) > 4096);
    assert!(ring(size_of::<BlkifSlot<X86_64>>(), X86_64::RING_SIZE) <= 4096);
}
