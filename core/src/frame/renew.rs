//! Frame records that are used again, by one simulated machine after the other: a fuzzer makes a million of them, and a
//! table is there for good.

use super::FrameInfo;
use core::sync::atomic::Ordering::Relaxed;

impl FrameInfo {
    /// Makes the record what [`FrameInfo::reserved`] makes. Nobody else may use it any more.
    pub(crate) fn renew(&self) {
        let Self { refs, kind, next, prev, shadow, stamp } = Self::reserved();
        self.refs.store(refs.into_inner(), Relaxed);
        self.kind.store(kind.into_inner(), Relaxed);
        self.next.store(next.into_inner(), Relaxed);
        self.prev.store(prev.into_inner(), Relaxed);
        self.shadow.store(shadow.into_inner(), Relaxed);
        self.stamp.store(stamp.into_inner(), Relaxed);
    }
}
