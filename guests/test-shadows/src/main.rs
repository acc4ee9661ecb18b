//! More page tables than the hypervisor may have shadows of: nobody sees which are there. (An x86_64 guest has no
//! shadows, and must see the same.)
#![no_std]
#![no_main]

use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{Errno, GuestArch, GuestVirt, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, StartInfo, Word, check, check_eq, probe};

proxenos_guest::test_guest!(main);

/// L1 tables, in a directory each has a slot of.
const TABLES: usize = 128;
/// Pages that each of them maps.
const PAGES: usize = 3;

fn main(_: &StartInfo) {
    proxenos_guest::init();
    let window = Window::new();
    reads_and_writes(&window);
    accessed_and_dirty(&window);
    changes(&window);
    #[cfg(target_arch = "x86")]
    bases(&window);
    gone(&window);
}

/// A fresh frame.
fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this test needs")
}

/// Maps a frame at its usual address with these flags.
fn remap(frame: Frame, flags: PteFlags) -> Result<(), Errno> {
    // SAFETY: the tests map pages of their own, to which no reference exists.
    unsafe { memory::update_va_mapping(frame.virt(), Pte::new(frame.mfn(), flags), UpdateVaFlags::INVLPG) }
}

/// Writes an entry of a table.
fn write(table: Mfn, index: usize, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the test changes entries that map nothing anybody refers to.
    unsafe { memory::write_entry(tables::entry_address(table, index), entry) }
}

/// Tables that map a few pages, each in a different place.
struct Window {
    /// The L2 table and its first slot that they hang in.
    directory: Mfn,
    first: usize,
    tables: [Mfn; TABLES],
    pages: [Frame; PAGES],
}

impl Window {
    fn new() -> Self {
        section("many tables");
        let (directory, _) = tables::entry_at(memory::virt_base(), 2).map(|(at, entry)| (at.mfn(), entry)).expect("L2");
        let free = |index: &usize| {
            (*index..index + TABLES)
                .all(|index| tables::read_entry(directory, index).is_some_and(|entry| !entry.is_present()))
        };
        // Far from where the SDK maps frames as they are asked for.
        let first = (300..380).find(free).expect("a range of slots is free");
        let pages = [(); PAGES].map(|()| frame());
        let tables = [(); TABLES].map(|()| frame());
        for (number, table) in tables.iter().enumerate() {
            for (page, frame) in pages.iter().enumerate() {
                let at = GuestVirt(table.virt().raw() + ((number + page) * size_of::<Word>()) as u64);
                // SAFETY: a fresh frame, mapped writable.
                check!(unsafe { probe::store(at, Pte::new(frame.mfn(), fresh()).0) });
            }
            check_eq!(remap(*table, PteFlags::KERNEL_RO), Ok(()));
            check_eq!(write(directory, first + number, Pte::new(table.mfn(), PteFlags::TABLE)), Ok(()));
        }
        Self { directory, first, tables: tables.map(|table| table.mfn()), pages }
    }

    /// Where a table maps a page.
    fn at(&self, table: usize, page: usize) -> GuestVirt {
        let span = 4096 * Arch::PAGE_TABLE_ENTRIES as u64;
        let low = (span * (self.first + table) as u64) + 4096 * (table + page) as u64;
        // What lies above the directory's reach is that of the image.
        let reach = span * Arch::PAGE_TABLE_ENTRIES as u64;
        GuestVirt(memory::virt_base().raw() / reach * reach + low)
    }

    fn entry(&self, table: usize, page: usize) -> Pte {
        tables::read_entry(self.tables[table], table + page).unwrap_or(Pte::NONE)
    }
}

/// What a mapping needs, without the bits the processor sets.
fn fresh() -> PteFlags {
    PteFlags::KERNEL_RW - PteFlags::ACCESSED - PteFlags::DIRTY
}

fn store(at: GuestVirt, value: usize) -> bool {
    // SAFETY: pages of the test's own.
    unsafe { probe::store(at, value as Word) }
}

fn reads_and_writes(window: &Window) {
    section("every table in turn");
    for round in 0..4 {
        for table in 0..TABLES {
            for page in 0..PAGES {
                let value = round << 16 | table << 4 | page;
                check!(store(window.at(table, page), value), "table {table}");
                check_eq!(probe::load(window.pages[page].virt()), Some(value as Word), "table {table}");
            }
        }
        for table in (0..TABLES).rev() {
            check_eq!(probe::load(window.at(table, 0)), probe::load(window.pages[0].virt()), "table {table}");
        }
        let behind = GuestVirt(window.at(TABLES - 1, PAGES - 1).raw() + 4096);
        check!(!probe::is_readable(behind), "what no table maps");
    }
}

fn accessed_and_dirty(window: &Window) {
    section("accessed and dirty");
    let used = PteFlags::ACCESSED | PteFlags::DIRTY;
    for table in 0..TABLES {
        let entry = Pte::new(window.pages[0].mfn(), fresh());
        check_eq!(write(window.tables[table], table, entry), Ok(()));
    }
    check_eq!(memory::flush_tlb(), Ok(()));
    for table in (0..TABLES).rev() {
        check_eq!(window.entry(table, 0).flags() & used, PteFlags::empty(), "table {table}, not touched");
        check!(probe::is_readable(window.at(table, 0)));
        check_eq!(window.entry(table, 0).flags() & used, PteFlags::ACCESSED, "table {table}, read");
        check!(store(window.at(table, 0), table));
        check_eq!(window.entry(table, 0).flags() & used, used, "table {table}, written");
    }
}

fn changes(window: &Window) {
    section("changes behind the shadows' back");
    for table in 0..TABLES {
        let entry = Pte::new(window.pages[table % PAGES].mfn(), PteFlags::KERNEL_RO);
        check_eq!(write(window.tables[table], table + 1, entry), Ok(()));
        check_eq!(write(window.tables[table], table + 2, Pte::NONE), Ok(()));
    }
    check_eq!(memory::flush_tlb(), Ok(()));
    for table in 0..TABLES {
        check!(!store(window.at(table, 1), 0), "table {table}, read-only");
        check_eq!(probe::load(window.at(table, 1)), probe::load(window.pages[table % PAGES].virt()), "table {table}");
        check!(!probe::is_readable(window.at(table, 2)), "table {table}, gone");
        check!(store(window.at(table, 0), table), "table {table}, as before");
    }
}

/// More directories than there is room for, each a base in turn.
#[cfg(target_arch = "x86")]
fn bases(window: &Window) {
    section("directories");
    const DIRECTORIES: usize = 40;
    let directories = [(); DIRECTORIES].map(|()| {
        let new = frame();
        for index in 0..1008 {
            let entry = tables::read_entry(window.directory, index).filter(|entry| entry.is_present());
            if let Some(entry) = entry {
                check!(store(GuestVirt(new.virt().raw() + 4 * index as u64), entry.0 as usize));
            }
        }
        check_eq!(remap(new, PteFlags::KERNEL_RO), Ok(()));
        check_eq!(memory::pin(2, new.mfn()), Ok(()));
        new
    });
    for (number, directory) in directories.iter().enumerate().chain(directories.iter().enumerate().rev()) {
        // SAFETY: it maps the same.
        check_eq!(unsafe { memory::set_base(directory.mfn()) }, Ok(()));
        for table in (0..TABLES).step_by(number + 1) {
            check!(store(window.at(table, 0), number), "directory {number}, table {table}");
        }
    }
    // SAFETY: it maps the same.
    check_eq!(unsafe { memory::set_base(window.directory) }, Ok(()));
    for directory in directories {
        check_eq!(memory::unpin(directory.mfn()), Ok(()));
        check_eq!(remap(directory, PteFlags::KERNEL_RW), Ok(()), "no reference is left behind");
    }
}

fn gone(window: &Window) {
    section("tables that are none any more");
    for table in 0..TABLES {
        check_eq!(write(window.directory, window.first + table, Pte::NONE), Ok(()));
    }
    check_eq!(memory::flush_tlb(), Ok(()));
    for table in 0..TABLES {
        check!(!probe::is_readable(window.at(table, 0)), "table {table}");
    }
}
