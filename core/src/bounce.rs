//! INTERIM signatures by the lead, so that `hypercall` and `vcpu` compile. corelib: replace the bodies (and this
//! comment), keep these names and signatures, add the frame construction (see your task, part 2).
use crate::addr::GuestVirt;
use crate::personality::Personality;
use proxenos_abi::context::TrapInfo;
use proxenos_abi::{Errno, GuestWord, Selector};

/// Where the guest wants to be entered: event or failsafe callback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Callback {
    /// Code selector.
    pub cs: Selector,
    /// Code address.
    pub ip: GuestVirt,
}

impl Callback {
    /// Checks selector (-EPERM) and address (-EINVAL).
    pub fn new<P: Personality>(cs: Selector, ip: GuestVirt) -> Result<Self, Errno> {
        Ok(Self { cs, ip })
    }
}

/// One handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrapHandler {
    /// Where.
    pub at: Callback,
    /// Lowest privilege (highest ring) that may call it by `int n`.
    pub dpl: u8,
    /// Whether events are masked on entry.
    pub masks_events: bool,
}

/// `set_trap_table`'s 256 handlers.
pub struct TrapTable([Option<TrapHandler>; 256]);

impl TrapTable {
    /// No handlers.
    #[must_use]
    pub const fn new() -> Self {
        Self([None; 256])
    }

    /// Installs one entry of `set_trap_table`.
    pub fn set<P: Personality>(&mut self, entry: &TrapInfo<P>) -> Result<(), Errno> {
        let (cs, address) = (entry.cs, entry.address);
        let at = Callback::new::<P>(cs, GuestVirt(address.to_u64()))?;
        self.0[entry.vector as usize] =
            Some(TrapHandler { at, dpl: entry.flags & 3, masks_events: entry.flags & 4 != 0 });
        Ok(())
    }

    /// The handler of a vector.
    #[must_use]
    pub fn get(&self, vector: u8) -> Option<TrapHandler> {
        self.0[vector as usize]
    }
}
