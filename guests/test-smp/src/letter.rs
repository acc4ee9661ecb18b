//! The page that both domains have mapped: what one tells the other, a word each.

use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::{GuestVirt, Mfn};

/// What a word of the page is.
#[derive(Clone, Copy)]
pub enum Field {
    /// Says that this is the page.
    Magic,
    /// And which frame it is in: no other holds both.
    Letter,
    /// What domain 1 is to do.
    Task,
    /// What it has done.
    Done,
    /// The frame that it writes to when it should not any more.
    Target,
    /// A frame that becomes a page table and back, over and over.
    Spare,
    /// The frame that it has offered, or has been given.
    Offered,
    /// How far it is, or how often it is to do it.
    Count,
    /// How often it could not write any more.
    Faults,
    /// Its port.
    Port,
    /// Whose turn it is.
    Turn,
    /// What did not go as it should.
    Errors,
    /// A time stamp, low and high.
    TscLow,
    TscHigh,
    /// A system time, low and high.
    TimeLow,
    TimeHigh,
}

/// What domain 1 does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Task {
    /// Lets go of a page, and writes to it until it faults.
    WriteStale = 1,
    /// Offers a frame.
    Offer,
    /// Gives that frame back, and asks for one.
    Exchange,
    /// Answers events.
    Answer,
    /// Compares times.
    TellTime,
    /// Maps and unmaps.
    Remap,
    /// Ends.
    End,
}

/// The page's mark, spelled so that the program's own text does not contain it.
fn magic() -> u32 {
    core::hint::black_box(0x6c65_7474) ^ core::hint::black_box(0x5a5a_0f0f)
}

/// The page, wherever it is mapped.
#[derive(Clone, Copy)]
pub struct Letter(GuestVirt);

impl Letter {
    /// The page at an address that stays mapped.
    pub fn at(at: GuestVirt) -> Self {
        Self(at)
    }

    fn word(self, field: Field) -> &'static AtomicU32 {
        let at = self.0.raw() as usize as *const AtomicU32;
        // SAFETY: a page is mapped there, whatever it holds, and all access to it is atomic.
        unsafe { &*at.add(field as usize) }
    }

    pub fn get(self, field: Field) -> u32 {
        self.word(field).load(Ordering::SeqCst)
    }

    pub fn set(self, field: Field, value: u32) {
        self.word(field).store(value, Ordering::SeqCst);
    }

    /// Makes it the letter.
    pub fn sign(self, frame: Mfn) {
        self.set(Field::Letter, frame.raw() as u32);
        self.set(Field::Magic, magic());
    }

    /// Whether it is the letter, in this frame.
    pub fn is_of(self, frame: Mfn) -> bool {
        self.get(Field::Magic) == magic() && u64::from(self.get(Field::Letter)) == frame.raw()
    }

    /// Domain 0 wants something done.
    pub fn begin(self, task: Task) {
        self.set(Field::Done, 0);
        self.set(Field::Task, task as u32);
    }

    /// Domain 0 waits until it is done.
    pub fn finish(self) {
        self.wait_for(|letter| letter.get(Field::Done) != 0);
    }

    /// Waits for the other domain, on its own CPU.
    pub fn wait_for(self, condition: impl Fn(Self) -> bool) {
        while !condition(self) {
            core::hint::spin_loop();
        }
    }

    pub fn set_time(self, tsc: u64, system_time: u64) {
        self.set(Field::TscLow, tsc as u32);
        self.set(Field::TscHigh, (tsc >> 32) as u32);
        self.set(Field::TimeLow, system_time as u32);
        self.set(Field::TimeHigh, (system_time >> 32) as u32);
    }

    /// Whether the times in it lie in the past. System time is worked out from the time stamp and the last tick, which
    /// rounds.
    pub fn is_past(self, tsc: u64, system_time: u64) -> bool {
        const ROUNDING_NS: u64 = 1000;
        let wide = |low, high| u64::from(self.get(low)) | u64::from(self.get(high)) << 32;
        wide(Field::TscLow, Field::TscHigh) <= tsc && wide(Field::TimeLow, Field::TimeHigh) <= system_time + ROUNDING_NS
    }
}
