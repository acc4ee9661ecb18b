//! What a domain has mapped of others' grants, by the numbers (handles) that it was given.
//!
//! A mapping holds a reference of its own to its frame, as writable memory if it allows writes, and keeps the granting
//! domain from being forgotten. The page-table entry that it wrote for CPUs, if any, is not part of it: that holds
//! references of its own, like any other entry.
//!
//! Lock: the list's own, innermost.

use super::status::Access;
use crate::addr::{GuestVirt, Mfn};
use crate::domain::Domain;
use alloc::sync::Arc;
use alloc::vec::Vec;
use proxenos_abi::GrantRef;

/// A number that a mapping is known by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle(pub u16);

/// How many mappings a domain may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit(pub usize);

impl Limit {
    /// For a domain that has nothing to do with devices, as in 2.0.
    pub const ORDINARY: Self = Self(1024);
    /// For one that may serve many others: all positive handles.
    pub const BACK_END: Self = Self(i16::MAX as usize);
}

/// The page-table entry that was written for a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HostEntry {
    /// The address that it was asked for.
    pub(crate) at: GuestVirt,
    /// The L1 table that led there.
    pub(crate) table: Mfn,
    /// The slot in it.
    pub(crate) slot: u16,
}

/// A mapping.
#[derive(Clone)]
pub(crate) struct Mapping {
    /// Whose frame it is.
    pub(crate) owner: Arc<Domain>,
    /// By which of its grants.
    pub(crate) grant: GrantRef,
    /// How.
    pub(crate) access: Access,
    /// Whether it is for devices.
    pub(crate) device: bool,
    /// The frame.
    pub(crate) frame: Mfn,
    /// Where it is for CPUs.
    pub(crate) host: Option<HostEntry>,
}

enum Place {
    /// Free; which is the next free one.
    Free(Option<Handle>),
    Used(Mapping),
}

/// All of a domain's mappings.
pub(crate) struct Mappings {
    places: Vec<Place>,
    free: Option<Handle>,
}

impl Mappings {
    pub(crate) const fn new() -> Self {
        Self { places: Vec::new(), free: None }
    }

    /// Makes room for one more, if there may be one.
    pub(crate) fn make_room(&mut self, limit: Limit) -> Option<()> {
        if self.free.is_none() {
            if self.places.len() >= limit.0 {
                return None;
            }
            self.places.try_reserve(1).ok()?;
            self.free = Some(Handle(self.places.len() as u16));
            self.places.push(Place::Free(None));
        }
        Some(())
    }

    /// Adds one; `None`, if there is no room made for it.
    pub(crate) fn insert(&mut self, mapping: Mapping) -> Option<Handle> {
        let handle = self.free?;
        let place = &mut self.places[usize::from(handle.0)];
        let Place::Free(next) = *place else { return None };
        self.free = next;
        *place = Place::Used(mapping);
        Some(handle)
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> Option<&mut Mapping> {
        match self.places.get_mut(usize::from(handle.0))? {
            Place::Used(mapping) => Some(mapping),
            Place::Free(_) => None,
        }
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, handle: Handle) -> Option<Mapping> {
        let place = self.places.get_mut(usize::from(handle.0)).filter(|place| matches!(place, Place::Used(_)))?;
        let Place::Used(mapping) = core::mem::replace(place, Place::Free(self.free)) else { return None };
        self.free = Some(handle);
        Some(mapping)
    }

    /// Takes any one out: the domain has ended and gets no more, so what is free need not be known any longer.
    pub(crate) fn pop(&mut self) -> Option<Mapping> {
        self.free = None;
        loop {
            if let Place::Used(mapping) = self.places.pop()? {
                return Some(mapping);
            }
        }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.places.iter().filter_map(|place| match place {
            Place::Used(mapping) => Some(mapping),
            Place::Free(_) => None,
        })
    }
}
