//! `DOM0_PCIDEV_ACCESS`: devices for other domains ([`physdev`](crate::physdev)).

use super::living;
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::others::Stopped;
use crate::pci::PciAddress;
use crate::physdev::give;
use crate::preempt::Stop;
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::args::PcidevAccess;

/// `DOM0_PCIDEV_ACCESS`: gives a domain a device, with its configuration, memory, ports and line. To take one away is
/// refused, as 2.0 did. With its first device a domain may have memory in one piece and caches written back, but unlike
/// there it does not come to control other domains.
pub(super) fn pcidev_access<H: Hardware>(caller: &mut Caller<'_, H>, argument: PcidevAccess) -> Result<u64, Stop> {
    let at = PciAddress::new(argument.bus, argument.dev, argument.func).ok_or(Errno::EINVAL)?;
    if argument.enable == 0 {
        return Err(Errno::EINVAL.into());
    }
    let dom = living(caller, argument.domain)?;
    let hw = &caller.host.hw;
    give(hw, &dom, at)?;
    if dom.granted.has_ports() {
        // Whoever has it run looks at what it has there.
        if dom.id == caller.dom.id {
            caller.vcpu.ports.note_devices();
        } else {
            hw.with_stopped(&dom, |Stopped { vcpu, .. }| vcpu.ports.note_devices())?;
        }
    }
    Ok(0)
}
