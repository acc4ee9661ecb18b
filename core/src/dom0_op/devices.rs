//! `DOM0_PCIDEV_ACCESS`: devices for other domains ([`physdev`](crate::physdev)).

use crate::event::EventDomains;
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::pci::PciAddress;
use crate::physdev::give;
use crate::preempt::Stop;
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::args::PcidevAccess;

/// `DOM0_PCIDEV_ACCESS`: gives a domain a device. To take one away is refused, as 2.0 did. Unlike there the domain gets no other privilege by it.
pub(super) fn pcidev_access<H: Hardware>(caller: &Caller<'_, H>, argument: PcidevAccess) -> Result<u64, Stop> {
    let at = PciAddress::new(argument.bus, argument.dev, argument.func).ok_or(Errno::EINVAL)?;
    if argument.enable == 0 {
        return Err(Errno::EINVAL.into());
    }
    let dom = caller.host.domains.find(argument.domain).ok_or(Errno::ESRCH)?;
    give(&caller.host.hw, &dom, at)?;
    Ok(0)
}
