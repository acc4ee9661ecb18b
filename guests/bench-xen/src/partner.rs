//! Other domains: created, built, started and destroyed by the control interface.
//!
//! One has 4 MiB and a page of code of this image, which does one small thing for ever: waits, or yields. Its callback
//! answers each event.

use crate::abi::{self, Domctl, call, context, domctl, evtchn, memory_op, mmuext, sched, shared_info, uvmf};
use crate::hypercall;
use crate::memory::{ENTRIES, Frame, KERNEL_RO, KERNEL_RW, TABLE, entry};
use crate::traps::address;
use core::arch::global_asm;

/// Its memory, in KiB: two extents of 2 MiB.
const MEMORY: u32 = 4 << 10;
const EXTENT: u32 = 9;
/// What its first frames are.
const L4: u64 = 0;
const L3: u64 = 1;
const L2: u64 = 2;
const L1: u64 = 3;
const CODE: u64 = 4;
const NOTES: u64 = 5;
const STACK: u64 = 6;
/// Where it has code, notes, stack and shared page: one after the other.
const BASE: u64 = 0x4000_0000;
const NOTES_AT: u64 = BASE + 0x1000;
const STACK_AT: u64 = BASE + 0x2000;
const SHARED_AT: u64 = BASE + 0x3000;
/// In its notes: the port to answer on, behind a number that its code writes.
const PORT: usize = 1;
/// Instructions of the noting callback up to the one that reads the counter.
pub const BEFORE_NOTE: u64 = 2;

unsafe extern "C" {
    fn partner_page();
    fn partner_waits();
    fn partner_notes();
    fn partner_yields();
    fn partner_answers();
    fn partner_notes_and_answers();
}

global_asm!(
    r#"
    .text
    .globl partner_page, partner_waits, partner_notes, partner_yields, partner_answers, partner_notes_and_answers
    .balign 4096
    partner_page:
    /* Notes the time-stamp counter, and waits. */
    partner_notes:
        rdtsc
        mov     dword ptr [{notes}], eax
        mov     dword ptr [{notes} + 4], edx
    partner_waits:
        mov     eax, {sched_op}
        mov     edi, {block}
        syscall
        jmp     partner_waits
    /* Counts its turns, and gives each away. */
    partner_yields:
        inc     qword ptr [{notes}]
        mov     eax, {sched_op}
        mov     edi, {yield}
        syscall
        jmp     partner_yields
    /* Callbacks. What they interrupt has nothing in its registers. */
    partner_notes_and_answers:
        push    rax
        push    rdx
        rdtsc
        mov     dword ptr [{notes}], eax
        mov     dword ptr [{notes} + 4], edx
        pop     rdx
        pop     rax
    partner_answers:
        mov     qword ptr [{shared} + {pending}], 0
        mov     qword ptr [{shared} + {selector}], 0
        mov     byte ptr [{shared} + {due}], 0
        mov     eax, {event_channel_op}
        mov     edi, {send}
        mov     esi, {notes} + {port}
        syscall
        mov     byte ptr [{shared} + {mask}], 0
        pop     rcx
        pop     r11
        or      byte ptr [rsp + 8], 3
        iretq
    .balign 4096
    "#,
    notes = const NOTES_AT,
    shared = const SHARED_AT,
    port = const PORT * 8,
    sched_op = const call::SCHED_OP,
    block = const sched::BLOCK,
    yield = const sched::YIELD,
    event_channel_op = const call::EVENT_CHANNEL_OP,
    send = const evtchn::SEND,
    pending = const shared_info::PENDING,
    selector = const shared_info::PENDING_SEL,
    due = const shared_info::UPCALL_PENDING,
    mask = const shared_info::UPCALL_MASK,
);

/// What a domain does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Notes the time of its first instruction, and waits.
    Noting,
    /// Waits, and answers events.
    Answering,
    /// Waits, notes when an event comes, and answers it.
    NotingEvents,
    /// Yields.
    Yielding,
}

impl Kind {
    /// Its first instruction and its callback.
    fn entries(self) -> [unsafe extern "C" fn(); 2] {
        match self {
            Self::Noting => [partner_notes, partner_answers],
            Self::Answering => [partner_waits, partner_answers],
            Self::NotingEvents => [partner_waits, partner_notes_and_answers],
            Self::Yielding => [partner_yields, partner_answers],
        }
    }
}

/// A page at which other domains' frames can be mapped.
#[derive(Clone, Copy)]
pub struct Window(Frame);

impl Window {
    pub fn new() -> Self {
        Self(Frame::new())
    }

    fn show(self, domain: u16, frame: u64) -> Frame {
        // SAFETY: no reference to the page is held.
        let mapped = unsafe { hypercall::map_of_domain(self.0.virt(), entry(frame, KERNEL_RW), domain) };
        assert!(mapped, "a frame of the domain's can be mapped");
        self.0
    }

    pub fn close(self) {
        // SAFETY: as above.
        assert!(unsafe { hypercall::update_va_mapping(self.0.virt(), 0, uvmf::INVLPG) }, "a page of ours");
    }

    /// The number that the domain whose notes are shown last wrote.
    #[inline(always)]
    pub fn number(self) -> u64 {
        self.0.load(0)
    }
}

/// A domain.
#[derive(Clone, Copy)]
pub struct Partner {
    domain: u16,
    /// The first of its frames, which follow one another.
    first: u64,
}

fn ask(cmd: u32, domain: u16, words: &[u32]) -> Option<Domctl> {
    let mut argument = [0; 32];
    argument[..words.len()].copy_from_slice(words);
    let mut request = Domctl { cmd, version: abi::CONTROL_VERSION, domain, pad: [0; 3], argument };
    // SAFETY: nothing of ours is in it but a context, which is only read.
    unsafe { hypercall::domctl(&mut request) }.then_some(request)
}

/// Creates a domain with its memory and its virtual CPU, and nothing in it.
pub fn create() -> Option<Partner> {
    // ssidref, handle (4), flags, IOMMU's, virtual CPUs, highest port, grants (2: the default), their version, 4 more.
    let wanted = [0, 0, 0, 0, 0, 0, 0, 1, 1023, u32::MAX, u32::MAX, 1, 0, 0, 0, 0];
    let domain = ask(domctl::CREATE, 0, &wanted)?.domain;
    ask(domctl::MAX_VCPUS, domain, &[1])?;
    ask(domctl::MAX_MEMORY, domain, &[MEMORY, 0])?;
    let mut extents = [0, 1 << EXTENT];
    // SAFETY: nothing is given back.
    let given = unsafe { hypercall::reserve(memory_op::POPULATE_PHYSMAP, &mut extents, EXTENT, domain) };
    given.then_some(Partner { domain, first: extents[0] })
}

impl Partner {
    /// One that is built, and does not run yet.
    pub fn build(kind: Kind, window: Window) -> Option<Self> {
        let partner = create()?;
        let domain = partner.domain;
        ask(domctl::SET_TSC, domain, &[abi::TSC_NEVER_EMULATED, 0, 0, 0, 0, 0])?;
        let info = ask(domctl::INFO, domain, &[])?.argument;
        let shared = u64::from(info[12]) | u64::from(info[13]) << 32;
        let index = |shift: u32| (BASE >> shift) as usize % ENTRIES;
        let own = |frame: u64, flags: u64| entry(partner.first + frame, flags);
        partner.fill(window, L4, &[(index(39), own(L3, TABLE))]);
        partner.fill(window, L3, &[(index(30), own(L2, TABLE))]);
        partner.fill(window, L2, &[(index(21), own(L1, TABLE))]);
        let pages = [
            (0, own(CODE, KERNEL_RO)),
            (1, own(NOTES, KERNEL_RW)),
            (2, own(STACK, KERNEL_RW)),
            (3, entry(shared, KERNEL_RW)),
        ];
        partner.fill(window, L1, &pages);
        partner.fill(window, NOTES, &[]);
        let code = window.show(domain, partner.first + CODE);
        for index in 0..ENTRIES {
            // SAFETY: the page of code is a page, in our image.
            code.store(index, unsafe { (address(partner_page) as *const u64).add(index).read() });
        }
        window.close();
        // SAFETY: no table of ours is meant.
        let pinned = unsafe { hypercall::mmuext_of_domain(mmuext::PIN_L4_TABLE, partner.first + L4, domain) };
        (pinned && partner.set_context(kind)).then_some(partner)
    }

    /// Writes one of its pages: all words are 0 but these.
    fn fill(self, window: Window, frame: u64, words: &[(usize, u64)]) {
        let page = window.show(self.domain, self.first + frame);
        (0..ENTRIES).for_each(|index| page.store(index, 0));
        words.iter().for_each(|&(index, word)| page.store(index, word));
        window.close();
    }

    fn set_context(self, kind: Kind) -> bool {
        let mut words = [0_u64; context::WORDS];
        let [entry, callback] = kind.entries().map(|code| BASE + address(code) - address(partner_page));
        let (stack, ss) = (STACK_AT + 4096, u64::from(abi::KERNEL_SS));
        words[context::FLAGS] = context::IN_KERNEL_ONLINE;
        words[context::RIP] = entry;
        words[context::CS] = u64::from(abi::KERNEL_CS);
        words[context::RFLAGS] = 0x202;
        (words[context::RSP], words[context::KERNEL_SP]) = (stack, stack);
        (words[context::SS], words[context::KERNEL_SS]) = (ss, ss);
        words[context::CR3] = (self.first + L4) << 12;
        (words[context::EVENT_CALLBACK], words[context::FAILSAFE_CALLBACK]) = (callback, callback);
        let at = words.as_ptr() as u64;
        ask(domctl::SET_CONTEXT, self.domain, &[0, 0, at as u32, (at >> 32) as u32]).is_some()
    }

    /// Makes a channel to it, and tells it its port: ours.
    pub fn connect(self, window: Window) -> Option<u32> {
        let (near, far) = hypercall::bind(self.domain)?;
        window.show(self.domain, self.first + NOTES).store(PORT, u64::from(far));
        window.close();
        Some(near)
    }

    /// Shows its notes.
    pub fn show_notes(self, window: Window) {
        window.show(self.domain, self.first + NOTES);
    }

    /// Lets it run.
    pub fn start(self) -> bool {
        ask(domctl::UNPAUSE, self.domain, &[]).is_some()
    }

    /// Ends it.
    pub fn destroy(self) -> bool {
        ask(domctl::DESTROY, self.domain, &[]).is_some()
    }
}
