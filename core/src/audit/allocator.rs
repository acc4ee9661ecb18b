//! The allocator's free lists against the frame table.

use super::{Audit, Invariant};
use crate::addr::{FRAMES_BELOW_4G, Mfn};
use crate::frame::FrameType;
use crate::frame_alloc::{MAX_ORDER, Zone};
use crate::host::Hardware;

impl<H: Hardware> Audit<'_, H> {
    /// Every free block lies in its zone, aligned, with no free buddy, and its frames are nobody's; the lists' sums are
    /// right. (That each frame that is nobody's lies in a block is seen later: it must have been claimed.)
    pub(super) fn free_lists(&mut self) {
        let host = self.host;
        let alloc = host.alloc.lock();
        let (mut low, mut high) = (0, 0);
        for (first, order) in alloc.blocks() {
            *if first.0 < FRAMES_BELOW_4G { &mut low } else { &mut high } += 1 << order;
            let ends = first.0.checked_add(1 << order).filter(|&end| end <= host.frames.len());
            if !first.0.is_multiple_of(1 << order) || ends.is_none() {
                self.report(
                    Invariant::Counted,
                    first,
                    "order of a free block",
                    first.0.trailing_zeros().into(),
                    order.into(),
                );
                continue;
            }
            let word = self.info(first).type_word();
            self.expect(Invariant::Counted, first, "type of a free block", FrameType::Free as u64, word.kind() as u64);
            self.expect(Invariant::Counted, first, "order of a free block", order.into(), word.count().into());
            let buddy = host.frames.info(Mfn(first.0 ^ 1 << order)).filter(|_| order < MAX_ORDER);
            if buddy.is_some_and(|buddy| buddy.free_order() == Some(order)) {
                self.report(Invariant::Counted, first, "free buddies", 0, 1);
            }
            for mfn in first.0..first.0 + (1 << order) {
                self.claim(Mfn(mfn), "claims on a free frame");
                self.census.free += u64::from(self.afresh);
                let info = self.info(Mfn(mfn));
                let kind = info.type_word().kind();
                let inside = mfn != first.0;
                if inside && kind != FrameType::None {
                    self.report(Invariant::Counted, Mfn(mfn), "type of a free frame", 0, kind as u64);
                }
                self.expect(Invariant::Counted, Mfn(mfn), "references to a free frame", 0, info.refs().count().into());
                self.expect(Invariant::Counted, Mfn(mfn), "a free frame's owner", 0, info.refs().is_allocated().into());
            }
        }
        let (below, all) = (alloc.free_frames(Zone::Below4G), alloc.free_frames(Zone::Any));
        drop(alloc);
        self.expect(Invariant::Counted, Mfn(0), "free frames below 4 GiB", low, below);
        self.expect(Invariant::Counted, Mfn(0), "free frames", low + high, all);
    }
}
