//! Images built by hand, each with one fault, and random bytes.

use super::recipe::Recipe;
use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

const BASES: [(Arch, u64); 2] = [(Arch::X86_32, 0xc010_0000), (Arch::X86_64, 0xffff_ffff_8010_0000)];

/// What is wrong with the small kernel for x86_32 after a change to its recipe.
fn fault(change: impl FnOnce(&mut Recipe)) -> ImageError {
    let mut recipe = Recipe::small(Arch::X86_32, 0xc010_0000);
    change(&mut recipe);
    let error = Image::parse(&recipe.build()).expect_err("the image has a fault");
    assert!(error.to_string().len() > 10);
    error
}

/// What is wrong with the small kernel after a change to its file.
fn damage(arch: Arch, change: impl FnOnce(&mut Vec<u8>)) -> ImageError {
    let mut file = Recipe::small(arch, 0xc010_0000).build();
    change(&mut file);
    Image::parse(&file).expect_err("the file is damaged")
}

#[test]
fn a_good_image_is_understood() {
    for (arch, base) in BASES {
        let file = Recipe::small(arch, base).build();
        let image = Image::parse(&file).unwrap();
        assert_eq!((image.arch(), image.entry()), (arch, GuestVirt(base + 4)));
        assert_eq!((image.virt_base(), image.end()), (GuestVirt(base), GuestVirt(base + 0x1010 + 0x2345)));
        assert_eq!(image.page_tables(), PageTableMode::Hypercalls);
        let contents: Vec<_> = image.contents().collect();
        assert_eq!(contents.len(), 2);
        assert_eq!(contents[0].1[..3], [0, 1, 2]);
        assert_eq!(contents[1], (GuestVirt(base + 0x1010), &[0xda; 0x123][..]));
    }
}

#[test]
fn virt_base_may_lie_below() {
    let mut recipe = Recipe::small(Arch::X86_32, 0xc010_0000);
    recipe.guest = b"GUEST_OS=linux,XEN_VER=2.0,VIRT_BASE=0xC0000000,PT_MODE_WRITABLE";
    let file = recipe.build();
    let image = Image::parse(&file).unwrap();
    assert_eq!((image.virt_base(), image.page_tables()), (GuestVirt(0xc000_0000), PageTableMode::Writable));
}

#[test]
fn faults_are_named() {
    assert_eq!(fault(|r| r.guest = b"LOADER=generic"), ImageError::NoVersion);
    assert_eq!(fault(|r| r.guest = b"XEN_VER=2.0"), ImageError::NoLoader);
    assert_eq!(fault(|r| r.entry = 0xc010_0900), ImageError::EntryOutside { entry: 0xc010_0900 });
    assert_eq!(fault(|r| r.loads.clear()), ImageError::NothingToLoad);
    assert_eq!(fault(|r| r.loads[1].at = 0xc010_08ff), ImageError::Overlap { first: 0xc010_0000, second: 0xc010_08ff });
    assert_eq!(fault(|r| r.loads[0].size = 0x8ff), ImageError::FileLargerThanMemory { at: 0xc010_0000 });
    assert_eq!(
        fault(|r| r.loads[1].size = 0x3c00_0000),
        ImageError::OutsideGuestSpace { start: 0xc010_1010, end: 0xfc10_1010 }
    );
    assert_eq!(fault(|r| r.guest = b"XEN_VER=2.0,LOADER=generic,VIRT_BASE=me"), ImageError::BadVirtBase);
    assert_eq!(
        fault(|r| r.guest = b"XEN_VER=2.0,LOADER=generic,VIRT_BASE=0xC0000001"),
        ImageError::BaseNotAligned { base: 0xc000_0001 }
    );
    assert_eq!(
        fault(|r| r.guest = b"XEN_VER=2.0,LOADER=generic,VIRT_BASE=0xC0101000"),
        ImageError::BaseAboveImage { base: 0xc010_1000, lowest: 0xc010_0000 }
    );
    let moved = |r: &mut Recipe| (r.loads[0].at, r.entry) = (0xc010_0008, 0xc010_0010);
    assert_eq!(fault(moved), ImageError::BaseNotAligned { base: 0xc010_0008 });
}

#[test]
fn hypervisor_addresses_are_refused_in_both_widths() {
    let mut recipe = Recipe::small(Arch::X86_64, 0xffff_87ff_ffff_f000);
    let start = 0xffff_87ff_ffff_f000;
    assert_eq!(Image::parse(&recipe.build()).unwrap_err(), ImageError::OutsideGuestSpace { start, end: start + 0x900 });
    recipe = Recipe::small(Arch::X86_64, 0x7fff_ffff_f000);
    assert!(matches!(Image::parse(&recipe.build()), Err(ImageError::OutsideGuestSpace { .. })), "not canonical");
    recipe = Recipe::small(Arch::X86_64, 0xffff_8800_0000_0000);
    assert!(Image::parse(&recipe.build()).is_ok());
    // The base alone may reach across the hole.
    recipe.guest = b"XEN_VER=2.0,LOADER=generic,VIRT_BASE=0x1000";
    assert!(matches!(Image::parse(&recipe.build()), Err(ImageError::OutsideGuestSpace { start: 0x1000, .. })));
}

#[test]
fn damaged_files_are_refused() {
    for (arch, machine_at) in [(Arch::X86_32, 18), (Arch::X86_64, 18)] {
        assert_eq!(damage(arch, |file| file[0] = 0), ImageError::NotElf);
        assert_eq!(damage(arch, |file| file.clear()), ImageError::NotElf);
        assert_eq!(damage(arch, |file| file.truncate(40)), ImageError::Truncated("ELF header"));
        assert_eq!(damage(arch, |file| file[5] = 2), ImageError::ByteOrder);
        assert_eq!(damage(arch, |file| file[16] = 3), ImageError::NotExecutable { kind: 3 });
        assert!(matches!(damage(arch, |file| file[machine_at] = 40), ImageError::WrongMachine { machine: 40, .. }));
        let whole = Recipe::small(arch, 0xc010_0000).build().len();
        assert_eq!(damage(arch, |file| file.truncate(whole - 1)), ImageError::Truncated("program or section headers"));
    }
    // The class of one architecture with the machine of the other.
    assert_eq!(damage(Arch::X86_32, |file| file[18] = 62), ImageError::WrongMachine { bits: 32, machine: 62 });
    assert_eq!(damage(Arch::X86_64, |file| file[18] = 3), ImageError::WrongMachine { bits: 64, machine: 3 });
    // The first segment's p_offset.
    assert_eq!(damage(Arch::X86_32, |file| file[52 + 7] = 1), ImageError::SegmentBeyondFile { at: 0xc010_0000 });
    // Section header table away, section names away.
    assert_eq!(damage(Arch::X86_32, |file| file[32..36].fill(0)), ImageError::NoGuestSection);
    assert_eq!(damage(Arch::X86_32, |file| file[50] = 0), ImageError::NoSectionNames);
    assert_eq!(damage(Arch::X86_32, |file| file[50] = 200), ImageError::NoSectionNames);
    let file = Recipe::small(Arch::X86_32, 0xc010_0000).build();
    let named = file.windows(11).position(|name| name == b"__xen_guest").unwrap();
    assert_eq!(damage(Arch::X86_32, |file| file[named] = b'.'), ImageError::NoGuestSection);
}

#[test]
fn bsd_symbols_follow_the_image() {
    for (arch, base) in BASES {
        let mut recipe = Recipe::small(arch, base);
        recipe.guest = b"XEN_VER=2.0,LOADER=generic,BSD_SYMTAB\0";
        let without = recipe.build();
        assert_eq!(Image::parse(&without).unwrap().end(), GuestVirt(base + 0x3355), "it has none");

        recipe.symbols = Some((vec![0x51; 35], vec![0x52; 9]));
        let file = recipe.build();
        let image = Image::parse(&file).unwrap();
        let (word, header, section) = if arch == Arch::X86_64 { (8, 64, 64) } else { (4, 52, 40) };
        let (at, bytes) = image.contents().last().unwrap();
        assert_eq!(at, GuestVirt((base + 0x3355).next_multiple_of(word)));
        assert_eq!(image.end(), GuestVirt(at.0 + bytes.len() as u64));
        let read =
            |at: usize, width: usize| bytes[at..at + width].iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
        let word = word as usize;
        assert_eq!(read(0, 4), bytes.len() - 4, "bytes behind the count");

        // What a BSD kernel does: parse the copy as an ELF file of its own.
        let copy = Elf::minimal_parse(&bytes[4..]).unwrap();
        assert_eq!((copy.ehdr.e_phoff, copy.ehdr.e_phnum, copy.ehdr.e_shstrndx), (0, 0, 0));
        assert_eq!(copy.ehdr.e_shoff as usize, header);
        assert_eq!(copy.ehdr.e_type, 2);
        let sections: Vec<_> = copy.section_headers().unwrap().iter().collect();
        assert_eq!(sections.len(), 6);
        assert!(sections.iter().all(|section| section.sh_name == 0));
        assert_eq!(sections[3].sh_offset, 0, "strings that no symbols use");
        let contents = |index: usize| {
            let at = sections[index].sh_offset as usize;
            assert_eq!((at + 4) % word, 0);
            &bytes[4 + at..4 + at + sections[index].sh_size as usize]
        };
        assert_eq!((contents(4), contents(5)), (&[0x51; 35][..], &[0x52; 9][..]));
        let first = (4 + header + 6 * section).next_multiple_of(word);
        assert_eq!(sections[4].sh_offset as usize + 4, first);
        assert_eq!(bytes.len() % word, 0);
    }
}

#[test]
fn symbols_that_repeat_one_part_of_the_file_are_refused() {
    let mut recipe = Recipe::small(Arch::X86_64, 0xffff_ffff_8000_0000);
    recipe.guest = b"XEN_VER=2.0,LOADER=generic,BSD_SYMTAB\0";
    recipe.symbols = Some((vec![1; 5000], vec![2; 10]));
    let mut file = recipe.build();
    // Both sections become the whole file.
    let len = file.len();
    for index in [4, 5] {
        let header = len - 64 * 6 + 64 * index;
        file[header + 24..header + 40].fill(0);
        file[header + 32..header + 40].copy_from_slice(&(len as u64).to_le_bytes());
    }
    assert_eq!(Image::parse(&file).unwrap_err(), ImageError::SymbolTable("its sections overlap"));
}

fn base_file() -> impl Strategy<Value = Vec<u8>> {
    let arch = prop_oneof![Just(BASES[0]), Just(BASES[1])];
    (arch, any::<bool>()).prop_map(|((arch, base), symbols)| {
        let mut recipe = Recipe::small(arch, base);
        recipe.loads[0].bytes.truncate(0x20);
        if symbols {
            recipe.guest = b"XEN_VER=2.0,LOADER=generic,BSD_SYMTAB\0";
            recipe.symbols = Some((vec![0x51; 48], vec![0x52; 9]));
        }
        recipe.build()
    })
}

/// All that later steps rely on.
fn check(file: &[u8]) {
    match Image::parse(file) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(image) => {
            assert!(image.virt_base().0 % 4096 == 0 && image.virt_base() <= image.entry());
            assert!(image.entry() < image.end() && guest_may_use(image.arch(), image.virt_base().0, image.end().0));
            let mut at = image.virt_base().0;
            for (start, bytes) in image.contents() {
                assert!(start.0 >= at);
                at = start.0 + bytes.len() as u64;
            }
            assert!(at <= image.end().0);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes(file in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&file);
    }

    #[test]
    fn any_bytes_behind_a_magic_number(file in prop::collection::vec(any::<u8>(), 0..300), wide in 1u8..3) {
        let mut image = vec![0x7f, b'E', b'L', b'F', wide, 1, 1];
        image.extend(file);
        check(&image);
    }

    #[test]
    fn a_good_image_with_bytes_changed(
        mut file in base_file(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(0xff)]), 1..6),
        cut in prop_oneof![3 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)],
    ) {
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        check(&file);
    }

    /// The same where it hurts most: in the headers.
    #[test]
    fn a_good_image_with_headers_changed(
        mut file in base_file(),
        changes in prop::collection::vec((0usize..1000, prop_oneof![any::<u8>(), Just(0), Just(0xff), 0u8..8]), 1..4),
    ) {
        let len = file.len();
        for (at, byte) in changes {
            let at = if at < 200 { at } else { len - 1 - (at - 200) % 384 };
            file[at] = byte;
        }
        check(&file);
    }
}
