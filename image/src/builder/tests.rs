//! Domains planned and built on a simulated machine, then looked at as their kernels would.

use super::*;
use crate::recipe::Recipe;
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use proxenos_abi::start_info::{StartInfo, StartInfoFlags};
use proxenos_abi::zerocopy::FromBytes;
use proxenos_abi::{GuestArch, Padded, Port, X86_32, X86_64};

const BASES: [(Arch, u64); 4] = [
    (Arch::X86_32, 0xc000_0000),
    (Arch::X86_32, 0xc010_0000),
    (Arch::X86_64, 0xffff_ffff_8000_0000),
    (Arch::X86_64, 0x40_0000),
];

fn request(module_bytes: u64, pages: u64) -> Request {
    Request { module_bytes, pages, kind: DomainKind::Initial }
}

fn plan(arch: Arch, base: u64, request: &Request) -> Result<Layout, BuildError> {
    let file = Recipe::small(arch, base).build();
    Layout::plan(&Image::parse(&file).unwrap(), request)
}

/// A machine's memory, and which of its frames are the domain's.
struct Frames {
    bytes: Vec<u8>,
    frames: Box<dyn Fn(Pfn) -> Mfn>,
}

impl Frames {
    fn new(machine: u64, frames: impl Fn(Pfn) -> Mfn + 'static) -> Self {
        Self { bytes: vec![0; (machine << 12) as usize], frames: Box::new(frames) }
    }

    fn frame(&self, mfn: Mfn) -> &[u8] {
        &self.bytes[(mfn.0 << 12) as usize..][..4096]
    }

    fn load(&self, at: u64, width: usize) -> u64 {
        self.bytes[at as usize..][..width].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

impl DomainMemory for Frames {
    type Error = BuildError;

    fn mfn(&self, pfn: Pfn) -> Mfn {
        (self.frames)(pfn)
    }

    fn clear(&mut self, pfn: Pfn) -> Result<(), BuildError> {
        self.write(pfn, 0, &[0; 4096])
    }

    fn write(&mut self, pfn: Pfn, offset: usize, bytes: &[u8]) -> Result<(), BuildError> {
        assert!(offset + bytes.len() <= 4096, "beyond the frame");
        let at = (self.mfn(pfn).0 << 12) as usize + offset;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// The nine points of `xen.h`, but for contents.
fn check_layout(layout: &Layout, image_end: u64, request: &Request) {
    let word = word_bytes(layout.arch);
    let round = |at: u64| at.next_multiple_of(4096);
    assert_eq!(layout.module.0, round(image_end));
    assert_eq!(layout.mfn_list.0, round(layout.module.0 + request.module_bytes));
    assert_eq!(layout.pt_base.0, round(layout.mfn_list.0 + request.pages * word));
    assert_eq!(layout.start_info.0, layout.pt_base.0 + layout.pt_frames * 4096);
    assert_eq!(layout.stack_top.0, layout.start_info.0 + 2 * 4096);
    assert_eq!(layout.end.0 % (4 << 20), 0);
    assert!(layout.end.0 - layout.stack_top.0 >= 512 << 10);
    assert!(layout.end.0 - layout.stack_top.0 < (512 << 10) + (4 << 20), "no more padding than it takes");
    assert!(layout.region_pages() <= request.pages);
    // Exactly the tables that map the region, counted page by page.
    let mut tables = 1;
    for span in &spans(layout.arch)[1..] {
        let mut slots: Vec<_> = (layout.virt_base.0..layout.end.0).step_by(4096).map(|at| at >> span).collect();
        slots.dedup();
        tables += slots.len() as u64;
    }
    assert_eq!(layout.pt_frames, tables);
}

#[test]
fn layouts_have_the_order_of_the_header() {
    for (arch, base) in BASES {
        for (module_bytes, pages) in [(0, 2048), (1, 4096), (0x12_3456, 8192), (3 << 20, 16384)] {
            let request = Request { kind: DomainKind::Ordinary, ..request(module_bytes, pages) };
            let layout = plan(arch, base, &request).unwrap();
            check_layout(&layout, base + 0x3355, &request);
        }
    }
}

/// Worked out by hand from Xen 2.0's construction of domain 0.
#[test]
fn a_layout_by_hand() {
    let layout = plan(Arch::X86_32, 0xc010_0000, &request(0x1801, 0x4000)).unwrap();
    assert_eq!(layout.module, GuestVirt(0xc010_4000));
    assert_eq!(layout.mfn_list, GuestVirt(0xc010_6000));
    assert_eq!(layout.pt_base, GuestVirt(0xc011_6000));
    assert_eq!(layout.pt_frames, 2);
    assert_eq!(layout.start_info, GuestVirt(0xc011_8000));
    assert_eq!(layout.stack_top, GuestVirt(0xc011_a000));
    assert_eq!(layout.end, GuestVirt(0xc040_0000));
    let layout = plan(Arch::X86_64, 0xffff_ffff_8000_0000, &request(0, 0x400)).unwrap();
    assert_eq!(layout.mfn_list, GuestVirt(0xffff_ffff_8000_4000));
    assert_eq!(layout.pt_base, GuestVirt(0xffff_ffff_8000_6000));
    assert_eq!(layout.pt_frames, 1 + 1 + 1 + 2);
    assert_eq!(layout.end, GuestVirt(0xffff_ffff_8040_0000));
}

#[test]
fn what_does_not_fit_is_refused() {
    let needed = plan(Arch::X86_32, 0xc000_0000, &request(0, 1 << 12)).unwrap().region_pages();
    assert_eq!(needed, 1024);
    assert!(plan(Arch::X86_32, 0xc000_0000, &request(0, 1024)).is_ok());
    let error = plan(Arch::X86_32, 0xc000_0000, &request(0, 1023)).unwrap_err();
    assert_eq!(error, BuildError::TooBig { needed: 1024, available: 1023 });
    assert_eq!(error.to_string(), "image and module need 4 MiB of memory, the domain gets 3 MiB");
    assert!(matches!(plan(Arch::X86_32, 0xc000_0000, &request(64 << 20, 0x4000)), Err(BuildError::TooBig { .. })));
    let start = GuestVirt(0x3ff0_0000);
    assert_eq!(plan(Arch::X86_32, start.0, &request(0, 0x4000)), Err(BuildError::BelowOneGiB { start }));
    let ordinary = Request { kind: DomainKind::Ordinary, ..request(0, 0x4000) };
    assert!(plan(Arch::X86_32, start.0, &ordinary).is_ok());
    assert!(plan(Arch::X86_64, start.0, &request(0, 0x4000)).is_ok());
    // The image fits below the hypervisor, the region does not.
    for (arch, base) in
        [(Arch::X86_32, 0xfbfb_0000), (Arch::X86_64, 0x7fff_fffb_0000), (Arch::X86_64, 0xffff_ffff_ff00_0000)]
    {
        let start = GuestVirt(base);
        assert_eq!(plan(arch, base, &request(16 << 20, 0x8000)), Err(BuildError::OutsideGuestSpace { start }));
    }
    for huge in [u64::MAX, 1 << 62] {
        assert!(plan(Arch::X86_64, 0x40_0000, &request(huge, 0x4000)).is_err());
        assert!(plan(Arch::X86_64, 0x40_0000, &request(0, huge)).is_err());
    }
}

/// A built domain, read through its own page tables.
struct Built {
    machine: Frames,
    layout: Layout,
    top: Mfn,
}

impl Built {
    /// Walks to the page that holds `at`: its entry, and the entries above it.
    fn walk(&self, at: u64) -> (u64, Vec<u64>) {
        let (mut table, mut above) = (self.top, vec![]);
        let mut spans = spans(self.layout.arch).to_vec();
        spans.push(12);
        for pair in spans.windows(2) {
            let index = (at >> pair[1]) & ((1 << (pair[0] - pair[1])) - 1);
            let entry = match self.layout.arch {
                Arch::X86_32 => self.machine.load((table.0 << 12) + 4 * index, 4),
                Arch::X86_64 => self.machine.load((table.0 << 12) + 8 * index, 8),
            };
            above.push(entry);
            table = Mfn(entry >> 12);
        }
        (above.pop().unwrap(), above)
    }

    fn read(&self, at: u64, len: u64) -> Vec<u8> {
        (at..at + len)
            .map(|at| {
                let (entry, _) = self.walk(at);
                assert!(entry & 1 == 1, "{at:#x} is not mapped");
                self.machine.bytes[((entry & !0xfff) + at % 4096) as usize]
            })
            .collect()
    }

    fn entries(&self, mfn: Mfn) -> usize {
        let bytes = self.machine.frame(mfn);
        bytes.chunks(word_bytes(self.layout.arch) as usize).filter(|entry| entry.iter().any(|byte| *byte != 0)).count()
    }
}

const SHARED_INFO: Mfn = Mfn(5);

/// Builds the small kernel in frames of which none is where the next one is.
fn build(arch: Arch, base: u64, request: &Request, scramble: u64) -> Built {
    let file = Recipe::small(arch, base).build();
    let image = Image::parse(&file).unwrap();
    let layout = Layout::plan(&image, request).unwrap();
    let mut machine = Frames::new(request.pages + 16, frames(request.pages, scramble));
    machine.bytes.fill(0xee);
    let module: Vec<u8> = (0..request.module_bytes).map(|i| (i * 7) as u8).collect();
    let start = StartOfDay {
        shared_info: SHARED_INFO,
        flags: StartInfoFlags::PRIVILEGED | StartInfoFlags::INITDOMAIN,
        controller: Port(3),
        command_line: b"root=/dev/ram0",
    };
    let top = populate(&mut machine, FrameContents::Unknown, &layout, &image, &module, &start).unwrap();
    for mfn in 0..16 {
        assert!(machine.frame(Mfn(mfn)).iter().all(|byte| *byte == 0xee), "a frame not the domain's");
    }
    Built { machine, layout, top }
}

/// Frames from 16 on, each exactly once, in an order that `scramble` (odd) decides. `pages` is a power of two.
fn frames(pages: u64, scramble: u64) -> impl Fn(Pfn) -> Mfn {
    move |pfn| Mfn(16 + pfn.0.wrapping_mul(scramble) % pages)
}

fn check_built<A: GuestArch>(built: &Built, base: u64, request: &Request, scramble: u64) {
    let layout = &built.layout;
    let frames = frames(request.pages, scramble);
    let word = word_bytes(layout.arch);
    assert_eq!(built.top, frames(layout.top_table()));

    // Point 7: one to one; point 8: writable, but for the page tables.
    let pt = layout.pt_base.0..layout.start_info.0;
    let (page, table) = if layout.arch == Arch::X86_32 { (0x023, 0x067) } else { (0x027, 0x067) };
    for at in (layout.virt_base.0..layout.end.0).step_by(4096) {
        let (entry, above) = built.walk(at);
        let bits = if pt.contains(&at) { page & !2 } else { page };
        assert_eq!(entry, frames(Pfn((at - base) >> 12)).0 << 12 | bits);
        assert!(above.iter().all(|entry| entry & 0xfff == table));
        assert!(above.iter().all(|entry| {
            (0..layout.pt_frames).any(|n| frames(Pfn(((layout.pt_base.0 - base) >> 12) + n)).0 == entry >> 12)
        }));
    }
    // Nothing else is mapped.
    let count = |range: core::ops::Range<u64>| range.map(|n| built.entries(frames(Pfn(n)))).sum::<usize>() as u64;
    let first = (layout.pt_base.0 - base) >> 12;
    assert_eq!(count(first..first + layout.pt_frames), layout.region_pages() + layout.pt_frames - 1);

    // The image, its bss, the module, the free pages.
    assert_eq!(built.read(base, 0x900), (0..0x900).map(|i| i as u8).collect::<Vec<_>>());
    assert_eq!(built.read(base + 0x900, 0x710), vec![0; 0x710]);
    assert_eq!(built.read(base + 0x1010, 0x123), vec![0xda; 0x123]);
    assert_eq!(built.read(base + 0x1133, 0x3000 - 0x1133 + 0x355), vec![0; 0x3000 - 0x1133 + 0x355]);
    let module: Vec<u8> = (0..request.module_bytes).map(|i| (i * 7) as u8).collect();
    assert_eq!(built.read(layout.module.0, request.module_bytes), module);
    assert_eq!(built.read(layout.end.0 - 4096, 4096), vec![0; 4096]);

    for pfn in (0..request.pages).map(Pfn) {
        let bytes = built.read(layout.mfn_list.0 + pfn.0 * word, word);
        assert_eq!(bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)), frames(pfn).0);
    }

    let bytes = built.read(layout.start_info.0, 4096);
    assert!(bytes[320..].iter().all(|byte| *byte == 0));
    let info = StartInfo::<A>::read_from_bytes(&bytes[..320]).unwrap();
    let field = |value: Padded<A>| value.to_u64();
    assert_eq!(field(info.nr_pages), request.pages);
    assert_eq!(field(info.shared_info), SHARED_INFO.0 << 12);
    assert_eq!(field(info.pt_base), layout.pt_base.0);
    assert_eq!(field(info.nr_pt_frames), layout.pt_frames);
    assert_eq!(field(info.mfn_list), layout.mfn_list.0);
    assert_eq!(field(info.mod_start), if request.module_bytes == 0 { 0 } else { layout.module.0 });
    assert_eq!(field(info.mod_len), request.module_bytes);
    assert_eq!(({ info.flags }, { info.domain_controller_evtchn }), (3, 3));
    assert_eq!(info.command_line(), b"root=/dev/ram0");
}

#[test]
fn domains_are_built_in_scattered_frames() {
    for (arch, base) in BASES {
        if arch == Arch::X86_32 {
            let request = request(0x1234, 2048);
            check_built::<X86_32>(&build(arch, base, &request, 1027), base, &request, 1027);
        } else {
            let request = request(0, 2048);
            check_built::<X86_64>(&build(arch, base, &request, 2047), base, &request, 2047);
        }
    }
}

#[test]
fn clean_frames_are_not_cleared_again() {
    let file = Recipe::small(Arch::X86_32, 0xc000_0000).build();
    let image = Image::parse(&file).unwrap();
    let layout = Layout::plan(&image, &request(0, 1024)).unwrap();
    let mut machine = Frames::new(1024, |pfn: Pfn| Mfn(pfn.0));
    // A page of the padding shows whether anyone was there.
    machine.bytes[1023 << 12] = 0x11;
    let start = StartOfDay {
        shared_info: Mfn(0),
        flags: StartInfoFlags::empty(),
        controller: Port(0),
        command_line: &[b'x'; 300],
    };
    populate(&mut machine, FrameContents::Zero, &layout, &image, &[], &start).unwrap();
    assert_eq!(machine.frame(Mfn(1023))[0], 0x11);
    let line = &machine.bytes[(layout.start_info.0 - 0xc000_0000) as usize + 64..][..256];
    assert_eq!((&line[..255], line[255]), (&[b'x'; 255][..], 0));
}

#[test]
fn it_comes_to_the_same_in_pieces() {
    for (arch, base) in BASES {
        let request = Request { kind: DomainKind::Ordinary, ..request(0x1_2345, 2048) };
        let whole = build(arch, base, &request, 77);
        let file = Recipe::small(arch, base).build();
        let image = Image::parse(&file).unwrap();
        let module: Vec<u8> = (0..request.module_bytes).map(|i| (i * 7) as u8).collect();
        let start = StartOfDay {
            shared_info: SHARED_INFO,
            flags: StartInfoFlags::PRIVILEGED | StartInfoFlags::INITDOMAIN,
            controller: Port(3),
            command_line: b"root=/dev/ram0",
        };
        let source = Source { layout: &whole.layout, image: &image, module: &module, start: &start };
        for most in [1, 3, 40] {
            let mut machine = Frames::new(request.pages + 16, frames(request.pages, 77));
            machine.bytes.fill(0xee);
            let mut populating = Populating::begin(&machine, FrameContents::Unknown, &source).unwrap();
            let mut pieces = 1;
            while populating.go_on(&mut machine, &source, Pages(most)).unwrap().is_none() {
                pieces += 1;
            }
            assert!(machine.bytes == whole.machine.bytes, "{arch:?}, {most} pages at a time");
            assert!(pieces > 2048 / most && pieces < 2300, "{pieces} pieces of {most}");
        }
    }
}

#[test]
fn frames_beyond_reach_are_refused_before_anything_is_written() {
    let file = Recipe::small(Arch::X86_32, 0xc000_0000).build();
    let image = Image::parse(&file).unwrap();
    let layout = Layout::plan(&image, &request(0, 1024)).unwrap();
    let mut machine = Frames::new(1024, |pfn: Pfn| if pfn.0 == 1023 { Mfn(1 << 20) } else { Mfn(pfn.0) });
    let start =
        StartOfDay { shared_info: Mfn(0), flags: StartInfoFlags::empty(), controller: Port(0), command_line: b"" };
    assert_eq!(
        populate(&mut machine, FrameContents::Unknown, &layout, &image, &[], &start),
        Err(BuildError::FrameOutOfReach { pfn: Pfn(1023), mfn: Mfn(1 << 20) })
    );
    assert!((0..1024).all(|mfn| machine.frame(Mfn(mfn)).iter().all(|byte| *byte == 0)));
}

#[test]
fn registers_are_those_that_kernels_expect() {
    let layout = plan(Arch::X86_32, 0xc000_0000, &request(0, 1024)).unwrap();
    let state = initial_state(&layout);
    assert_eq!((state.ip, state.sp, state.start_info), (GuestVirt(0xc000_0004), layout.stack_top, layout.start_info));
    assert_eq!((state.flags, state.code.0, state.data.0), (0x202, 0x0819, 0x0821));
    assert_eq!((state.kernel_ss.0, state.kernel_sp.0), (0, 0));
    let ordinary = Request { kind: DomainKind::Ordinary, ..request(0, 1024) };
    let layout = plan(Arch::X86_64, 0x40_0000, &ordinary).unwrap();
    let state = initial_state(&layout);
    assert_eq!((state.flags, state.code.0, state.data.0), (0x206, 0x082b, 0x0833));
    assert_eq!((state.kernel_ss.0, state.kernel_sp), (0x0833, layout.stack_top));
}

proptest! {
    #[test]
    fn every_layout_holds_together(
        which in 0usize..4,
        module_bytes in prop_oneof![0u64..0x10000, 0u64..(200 << 20)],
        pages in prop_oneof![0u64..5000, 0u64..(1 << 19)],
    ) {
        let (arch, base) = BASES[which];
        let request = request(module_bytes, pages);
        match plan(arch, base, &request) {
            Ok(layout) => {
                let base = layout.virt_base.0;
                check_layout(&layout, base + 0x3355, &request);
            }
            Err(BuildError::TooBig { needed, available }) => {
                prop_assert!(needed > available && available == pages);
                prop_assert!(needed * 4096 >= module_bytes);
            }
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
