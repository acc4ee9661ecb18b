//! The entries of a grant table under several CPUs, for the model checker (loom).
//!
//! What the hypervisor does to an entry is `core`'s own code, compiled here over loom's atomics. What the grantor does
//! is written here, as the header asks for it. Frames have contents that the checker watches: who reads or writes them
//! while another writes, with no order between the two, is found out.
//!
//! A locked instruction of x86 is a full barrier, which the checker must be told ([`locked`]); plain loads and stores
//! are in order but for a load that overtakes a store, as acquire and release have it.

#[allow(dead_code, unused_imports)]
#[path = "../../src/addr.rs"]
mod addr;
#[allow(dead_code, unused_imports)]
#[path = "../../src/machine.rs"]
mod machine;
#[path = "../../src/grant/status.rs"]
pub mod status;

/// What `machine` asks for, and no model uses.
mod debugreg {
    /// None.
    pub struct DebugRegisters;
}

pub use addr::{DomId, MachineAddr, Mfn};
use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};
use loom::sync::atomic::{AtomicU32, fence};
use machine::MachineMemory;
use proxenos_abi::grant_table::GrantFlags;
use status::{Access, Unfit};

/// The entry's address.
pub const ENTRY: MachineAddr = MachineAddr(0);
/// Frames that there are.
pub const FRAMES: usize = 2;

/// Runs one of the processor's locked instructions: nothing passes it, in either direction.
fn locked<R>(change: impl FnOnce() -> R) -> R {
    fence(SeqCst);
    let before = change();
    fence(SeqCst);
    before
}

/// An entry: flags and grantee, and a frame.
#[derive(Default)]
struct Entry {
    words: [AtomicU32; 2],
}

impl Entry {
    fn cell(&self, at: MachineAddr) -> &AtomicU32 {
        &self.words[at.0 as usize / 4]
    }
}

/// The entry as the hypervisor reaches it.
impl MachineMemory for Entry {
    fn load32(&self, at: MachineAddr) -> u32 {
        self.cell(at).load(Acquire)
    }
    fn store32(&self, at: MachineAddr, value: u32) {
        self.cell(at).store(value, Release);
    }
    fn cas32(&self, at: MachineAddr, old: u32, new: u32) -> Result<(), u32> {
        locked(|| self.cell(at).compare_exchange(old, new, AcqRel, Acquire)).map(|_| ())
    }
    fn or32(&self, at: MachineAddr, bits: u32) -> u32 {
        locked(|| self.cell(at).fetch_or(bits, AcqRel))
    }
    fn and32(&self, at: MachineAddr, bits: u32) -> u32 {
        locked(|| self.cell(at).fetch_and(bits, AcqRel))
    }
    fn load8(&self, _: MachineAddr) -> u8 {
        unreachable!()
    }
    fn store8(&self, _: MachineAddr, _: u8) {
        unreachable!()
    }
    fn load64(&self, _: MachineAddr) -> u64 {
        unreachable!()
    }
    fn store64(&self, _: MachineAddr, _: u64) {
        unreachable!()
    }
    fn cas64(&self, _: MachineAddr, _: u64, _: u64) -> Result<(), u64> {
        unreachable!()
    }
    fn clear_frame(&self, _: Mfn) {
        unreachable!()
    }
    fn read(&self, _: MachineAddr, _: &mut [u8]) {
        unreachable!()
    }
    fn write(&self, _: MachineAddr, _: &[u8]) {
        unreachable!()
    }
}

/// What the hypervisor counts: mappings, and those of them that allow writes.
#[derive(Default)]
struct Counts {
    mappings: u32,
    writable: u32,
    /// Frames given away.
    given: u32,
}

/// A grantor's entry, its frames, and the hypervisor.
pub struct Machine {
    entry: Entry,
    counts: Mutex<Counts>,
    contents: [UnsafeCell<u32>; FRAMES],
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            entry: Entry::default(),
            counts: Mutex::new(Counts::default()),
            contents: core::array::from_fn(|_| UnsafeCell::new(0)),
        }
    }
}

/// The hypervisor, for a domain that maps.
impl Machine {
    /// A domain maps the grant, uses the frame, and unmaps it; which frame it was.
    pub fn map_use_unmap(&self, grantee: DomId, access: Access) -> Result<u32, Unfit> {
        let frame = self.map(grantee, access)?;
        self.touch(frame, access);
        self.unmap(access);
        Ok(frame)
    }

    /// As `core::grant::table` has it, under the table's lock.
    pub fn map(&self, grantee: DomId, access: Access) -> Result<u32, Unfit> {
        let mut counts = self.counts.lock().unwrap();
        let frame = status::begin(&self.entry, ENTRY, grantee, access)?;
        counts.mappings += 1;
        counts.writable += u32::from(access == Access::Write);
        Ok(frame)
    }

    /// The same.
    pub fn unmap(&self, access: Access) {
        let mut counts = self.counts.lock().unwrap();
        counts.mappings -= 1;
        counts.writable -= u32::from(access == Access::Write);
        let left = match (counts.mappings, counts.writable) {
            (0, _) => None,
            (_, 0) => Some(Access::Read),
            _ => Some(Access::Write),
        };
        status::end(&self.entry, ENTRY, left);
    }

    /// The domain uses what it has mapped.
    pub fn touch(&self, frame: u32, access: Access) {
        let cell = &self.contents[frame as usize];
        match access {
            Access::Read => cell.with(|_| ()),
            Access::Write => cell.with_mut(|_| ()),
        }
    }

    /// A domain gives a frame away: it is the receiver's from then on.
    pub fn give(&self, giver: DomId, frame: u32) -> Result<u32, Unfit> {
        let mut counts = self.counts.lock().unwrap();
        let place = status::commit(&self.entry, ENTRY, giver)?;
        // What the giver left in it.
        self.contents[frame as usize].with_mut(|_| ());
        status::complete(&self.entry, ENTRY, frame);
        counts.given += 1;
        Ok(place)
    }

    /// How many frames were given away.
    pub fn given(&self) -> u32 {
        self.counts.lock().unwrap().given
    }
}

/// The grantor.
impl Machine {
    /// Grants a frame, or waits for one (with the place that it is to fill).
    pub fn grant(&self, flags: GrantFlags, to: DomId, frame: u32) {
        let [first, second] = &self.entry.words;
        second.store(frame, Release);
        // The number first, the flags last: as one store it is what x86 makes of two.
        first.store(u32::from(to.0) << 16 | u32::from(flags.bits()), Release);
    }

    /// The flags, now.
    pub fn flags(&self) -> GrantFlags {
        GrantFlags::from_bits_retain(self.entry.words[0].load(Acquire) as u16)
    }

    /// Withdraws the grant, or makes something else of it, by compare-and-exchange while none of `busy` is set.
    pub fn change(&self, busy: GrantFlags, make: impl FnOnce(GrantFlags) -> GrantFlags) -> bool {
        let first = &self.entry.words[0];
        let seen = first.load(Acquire);
        let flags = GrantFlags::from_bits_retain(seen as u16);
        if flags.intersects(busy) {
            return false;
        }
        let next = seen & 0xffff_0000 | u32::from(make(flags).bits());
        locked(|| first.compare_exchange(seen, next, AcqRel, Acquire)).is_ok()
    }

    /// Uses a frame as its own.
    pub fn own(&self, frame: u32) {
        self.contents[frame as usize].with_mut(|_| ());
    }

    /// Reads a frame, while others may read it too.
    pub fn look(&self, frame: u32) {
        self.contents[frame as usize].with(|_| ());
    }

    /// The frame that the entry names.
    pub fn frame(&self) -> u32 {
        self.entry.words[1].load(Acquire)
    }
}
