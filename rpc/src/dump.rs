//! Looking into a domain: its virtual CPU, and its memory.

use serde::{Deserialize, Serialize};

use crate::{Arch, Bytes, Info};

/// The most bytes a context takes: `full_execution_context_t` of either architecture is below 6 KiB.
pub const MAX_CONTEXT: usize = 8 * 1024;

/// A domain's virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The domain at the same moment.
    pub info: Info,
    /// Whose layout the bytes have.
    pub arch: Arch,
    /// `full_execution_context_t` as GETDOMAININFO fills it in.
    pub raw: Bytes<MAX_CONTEXT>,
}

/// What an address counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressSpace {
    /// Through the page tables that its virtual CPU has loaded.
    Virtual,
    /// The domain's own frames, from 0, by its frame list as it was built.
    PseudoPhysical,
}
