//! Where a new domain's contents are written.

use super::BuildError;
use proxenos_abi::{Mfn, Pfn};

/// The memory of a domain that is being built, by its own numbering of its frames.
///
/// The builder writes in runs: bytes of the same frame mostly follow one another, so an implementation that has to map a frame
/// does well to keep the last one mapped.
pub trait DomainMemory {
    /// Why it cannot be written, or the domain not be built.
    type Error: From<BuildError>;

    /// The machine frame behind one of the domain's frames.
    fn mfn(&self, pfn: Pfn) -> Mfn;

    /// Fills a frame with zeroes.
    ///
    /// # Errors
    /// When the frame cannot be reached.
    fn clear(&mut self, pfn: Pfn) -> Result<(), Self::Error>;

    /// Writes bytes into a frame, from `offset` on. They do not reach beyond the frame's end.
    ///
    /// # Errors
    /// When the frame cannot be reached.
    fn write(&mut self, pfn: Pfn, offset: usize, bytes: &[u8]) -> Result<(), Self::Error>;
}
