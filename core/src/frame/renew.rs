//! Frame records that are used again, by one simulated machine after the other: a fuzzer makes a million of them, and a
//! table is there for good.

use super::FrameInfo;
use core::sync::atomic::Ordering::Relaxed;

impl FrameInfo {
    /// Makes the record what [`FrameInfo::reserved`] makes. Nobody else may use it any more.
    pub(crate) fn renew(&self) {
        let Self { word, next, prev, shadow, stamp, uncached } = Self::reserved();
        self.word.store(word.into_inner(), Relaxed);
        self.next.store(next.into_inner(), Relaxed);
        self.prev.store(prev.into_inner(), Relaxed);
        self.shadow.store(shadow.into_inner(), Relaxed);
        self.stamp.store(stamp.into_inner(), Relaxed);
        self.uncached.store(uncached.into_inner(), Relaxed);
    }
}
