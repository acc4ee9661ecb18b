//! INTERIM signatures by the lead, so that `segments` and `paging` compile. corelib: replace the bodies (and this
//! comment), keep the names and signatures: `check(Arch, raw) -> Result<raw to store, BadDescriptor>`.
use crate::domain::Arch;

/// The descriptor is none that guests may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadDescriptor;

/// Checks a descriptor for a guest's table; returns it as it is to be stored.
pub fn check(_arch: Arch, raw: u64) -> Result<u64, BadDescriptor> {
    if raw >> 47 & 1 == 0 { Ok(raw) } else { Err(BadDescriptor) }
}
