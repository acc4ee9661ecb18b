//! Grants between domains: each of three domains, of both architectures, grants to each of the others.
//!
//! Domain 0 asks for every step, and looks at what both sides see of it; the hypervisor audits the whole machine after
//! each part.

use crate::partner::{Partner, Request};
use proxenos_guest::abi::dom0_ops::Dom0Op;
use proxenos_guest::abi::dom0_ops::args::DestroyDomain;
use proxenos_guest::abi::grant_table::{GrantFlags, GrantMapFlags, GrantStatus};
use proxenos_guest::abi::{DomId, Errno};
use proxenos_guest::pte::PteFlags;
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, hypercall, println};

const ACCESS: GrantFlags = GrantFlags::PERMIT_ACCESS;
const READING: GrantFlags = GrantFlags::READING;
const BOTH: GrantFlags = READING.union(GrantFlags::WRITING);
const HOST: GrantMapFlags = GrantMapFlags::HOST_MAP;
const READ_ONLY: GrantMapFlags = GrantMapFlags::HOST_MAP.union(GrantMapFlags::READONLY);
const OKAY: i64 = GrantStatus::Okay.raw() as i64;
const GENERAL: i64 = GrantStatus::GeneralError.raw() as i64;
const BAD_DOMAIN: i64 = GrantStatus::BadDomain.raw() as i64;
const BAD_HANDLE: i64 = GrantStatus::BAD_HANDLE.raw() as i64;
const EINVAL: i64 = -(Errno::EINVAL.raw() as i64);

/// The grant that most of this is about.
const GRANT: u64 = 3;

/// A page of a domain's.
#[derive(Clone, Copy)]
struct Page {
    at: u64,
    frame: u64,
}

impl Partner {
    fn page(&self) -> Page {
        let (at, frame) = self.ask(Request::Fresh, []);
        Page { at: at as u64, frame }
    }

    /// A page of which only the address is used: nothing is mapped there.
    fn place(&self) -> Page {
        let page = self.page();
        self.show(page, page.frame, PteFlags::empty());
        page
    }

    fn show(&self, page: Page, frame: u64, flags: PteFlags) {
        check_eq!(self.remap(page, frame, flags), 0, "domain {} maps {frame:#x}", self.domain.0);
    }

    fn remap(&self, page: Page, frame: u64, flags: PteFlags) -> i64 {
        // An entry of zeroes, where nothing is to be present.
        let frame = if flags.is_empty() { 0 } else { frame };
        self.ask(Request::Remap, [page.at, frame, flags.bits().into()]).0
    }

    fn load(&self, page: Page) -> i64 {
        self.ask(Request::Load, [page.at]).0
    }

    fn store(&self, page: Page, value: u64) -> bool {
        self.ask(Request::Store, [page.at, value]).0 == 1
    }

    fn grant(&self, flags: GrantFlags, to: &Self, frame: u64) {
        self.ask(Request::Grant, [GRANT, flags.bits().into(), to.domain.0.into(), frame]);
    }

    fn flags(&self) -> GrantFlags {
        GrantFlags::from_bits_retain(self.ask(Request::Look, [GRANT]).0 as u16)
    }

    fn withdraws(&self) -> bool {
        self.ask(Request::Withdraw, [GRANT]).0 == 1
    }

    fn map(&self, page: Page, of: &Self, flags: GrantMapFlags) -> i64 {
        self.ask(Request::Map, [page.at, of.domain.0.into(), GRANT, flags.bits().into()]).0
    }

    fn mapped(&self, page: Page, of: &Self, flags: GrantMapFlags) -> u64 {
        let handle = self.map(page, of, flags);
        check!(handle >= 0, "domain {} maps a grant of domain {}: {handle}", self.domain.0, of.domain.0);
        handle as u64
    }

    fn unmap(&self, at: u64, device: u64, handle: u64) -> i64 {
        self.ask(Request::Unmap, [at, device, handle]).0
    }

    fn pin(&self, frame: u64) -> i64 {
        self.ask(Request::Pin, [1, frame]).0
    }
}

/// Domain 0.
pub fn run() {
    let all = [Partner::own(), Partner::meet(DomId(1)), Partner::meet(DomId(2))];
    for (title, part) in [
        ("mapped, read, written, unmapped", uses as fn(&Partner, &Partner, &Partner)),
        ("what does not match", mismatches),
        ("an entry that is changed while it is in use", changed_entry),
        ("a page-table entry that its domain changes", remapped),
        ("page tables", tables),
        ("a page table that is moved", moved),
        ("memory that is given back while it is mapped", given_back),
        ("frames that are given away", transfers),
    ] {
        section(title);
        for (grantor, mapper, third) in [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 0)] {
            println!("domain {grantor} grants, domain {mapper} maps");
            part(&all[grantor], &all[mapper], &all[third]);
        }
        check_eq!(hypercall::audit(), Ok(()), "the audit after it");
    }
    section("ends");
    ends(&all);
    check_eq!(hypercall::audit(), Ok(()), "the audit after it");
}

fn uses(grantor: &Partner, mapper: &Partner, third: &Partner) {
    let (page, place, others) = (grantor.page(), mapper.place(), third.place());
    let device = GrantMapFlags::DEVICE_MAP;
    let application = GrantMapFlags::APPLICATION_MAP;
    for (granted, asked, noted) in [
        (ACCESS, HOST, BOTH),
        (ACCESS, READ_ONLY, READING),
        (ACCESS, HOST | application, BOTH),
        (ACCESS, READ_ONLY | application, READING),
        (ACCESS, HOST | device, BOTH),
        (ACCESS | GrantFlags::READONLY, READ_ONLY, READING),
        (ACCESS | GrantFlags::READONLY, READ_ONLY | device, READING),
    ] {
        grantor.grant(granted, mapper, page.frame);
        check_eq!(third.map(others, grantor, asked), GENERAL, "it is not granted to everybody");
        if granted.contains(GrantFlags::READONLY) {
            check_eq!(mapper.map(place, grantor, HOST), GENERAL, "nor to be written");
            check_eq!(grantor.flags(), granted, "what is refused leaves no mark");
        }
        check!(grantor.store(page, 0x1111));
        let of = [place.at, grantor.domain.0.into(), GRANT, asked.bits().into()];
        let (handle, bus) = mapper.ask(Request::Map, of);
        check!(handle >= 0, "{granted:?} as {asked:?}: {handle}");
        if asked.contains(device) {
            check_eq!(bus, page.frame << 12, "where devices find it");
        }
        check_eq!(grantor.flags(), granted | noted, "{granted:?} as {asked:?}");
        check_eq!(mapper.load(place), 0x1111, "what the other one wrote");
        let writable = noted == BOTH;
        check_eq!(mapper.store(place, 0x2222), writable, "{granted:?} as {asked:?}: a store");
        check_eq!(grantor.load(page), if writable { 0x2222 } else { 0x1111 });
        let flags = PteFlags::from_bits_truncate(mapper.ask(Request::EntryFlags, [place.at]).0 as u32);
        // What a kernel's own pages are says whether kernels are in ring 3, as x86_64's are.
        let own = mapper.page();
        let own = PteFlags::from_bits_truncate(mapper.ask(Request::EntryFlags, [own.at]).0 as u32);
        let for_applications = asked.contains(application) || own.contains(PteFlags::USER);
        check_eq!(flags.contains(PteFlags::USER), for_applications, "{asked:?}: for applications");
        check!(!grantor.withdraws(), "what is in use is not taken back");
        if asked.contains(device) {
            check_eq!(mapper.unmap(place.at, 0, handle as u64), OKAY);
            check_eq!(mapper.load(place), -1, "gone, for CPUs");
            check_eq!(grantor.flags(), granted | noted, "devices may still use it");
            check!(!grantor.withdraws());
            check_eq!(mapper.unmap(0, bus, handle as u64), OKAY);
        } else {
            check_eq!(mapper.unmap(place.at, 0, handle as u64), OKAY);
        }
        check_eq!(mapper.load(place), -1, "nothing is mapped there any more");
        check_eq!(grantor.flags(), granted, "and the grantor sees it");
        check_eq!(mapper.unmap(place.at, 0, handle as u64), BAD_HANDLE, "once is enough");
        check!(grantor.withdraws());
        check_eq!(mapper.map(place, grantor, asked), GENERAL, "what was withdrawn is granted no more");
    }
    // Twice at the same time: the marks go with the last one.
    grantor.grant(ACCESS, mapper, page.frame);
    let second = mapper.place();
    let (writing, reading) = (mapper.mapped(place, grantor, HOST), mapper.mapped(second, grantor, READ_ONLY));
    check_eq!(mapper.unmap(place.at, 0, writing), OKAY);
    check_eq!(grantor.flags(), ACCESS | READING, "who is left only reads");
    check_eq!(mapper.unmap(second.at, 0, reading), OKAY);
    check_eq!(grantor.flags(), ACCESS);
    check!(grantor.withdraws());
}

fn mismatches(grantor: &Partner, mapper: &Partner, third: &Partner) {
    let (page, place, other) = (grantor.page(), mapper.place(), mapper.place());
    grantor.grant(ACCESS, mapper, page.frame);
    let first = mapper.mapped(place, grantor, HOST | GrantMapFlags::DEVICE_MAP);
    let second = mapper.mapped(other, grantor, READ_ONLY);
    let (bus, own) = (page.frame << 12, mapper.page());
    for (at, device, handle, status) in [
        (other.at, 0, first, GENERAL),
        (place.at, 0, second, GENERAL),
        (own.at, 0, first, GENERAL),
        (place.at + 1, 0, first, GENERAL),
        (place.at, bus + 4096, first, GENERAL),
        (other.at, bus, first, GENERAL),
        (other.at, bus, second, GENERAL),
        (0, bus, second, GENERAL),
        (0, bus + 1, first, GENERAL),
        (place.at, 0, 900, BAD_HANDLE),
        (place.at, 0, 0x7fff, BAD_HANDLE),
        (place.at, 0, 0xffff, BAD_HANDLE),
        (0, 0, first, OKAY),
    ] {
        check_eq!(mapper.unmap(at, device, handle), status, "{at:#x} {device:#x} {handle}");
        check_eq!(grantor.flags(), ACCESS | BOTH);
        check!(mapper.store(place, 0x77) && grantor.load(page) == 0x77, "it is still mapped");
        check_eq!(mapper.load(other), 0x77);
    }
    check!(mapper.store(own, 5), "what is mapped otherwise stays");
    for handle in [first, second] {
        check!(third.unmap(third.place().at, 0, handle) != OKAY, "handles are their domain's");
        check!(grantor.unmap(page.at, 0, handle) != OKAY, "and not the grantor's");
    }
    check_eq!(grantor.flags(), ACCESS | BOTH);
    check_eq!(mapper.unmap(place.at, bus, first), OKAY);
    check_eq!(mapper.unmap(other.at, 0, second), OKAY);
    check_eq!(grantor.flags(), ACCESS);
}

fn changed_entry(grantor: &Partner, mapper: &Partner, third: &Partner) {
    let (page, hidden, place) = (grantor.page(), grantor.page(), mapper.place());
    let (again, others) = (mapper.place(), third.place());
    check!(grantor.store(hidden, 0x5ec2e7));
    let accept = GrantFlags::ACCEPT_TRANSFER;
    for (flags, to, frame) in [
        (ACCESS | BOTH, mapper, hidden.frame),
        (ACCESS, mapper, hidden.frame),
        (ACCESS, third, page.frame),
        (ACCESS, third, hidden.frame),
        (GrantFlags::empty(), mapper, 0),
        (accept, mapper, 0),
        (ACCESS | GrantFlags::READONLY | BOTH, mapper, page.frame),
    ] {
        grantor.grant(ACCESS, mapper, page.frame);
        let handle = mapper.mapped(place, grantor, HOST);
        grantor.grant(flags, to, frame);
        check_eq!(mapper.map(again, grantor, HOST), GENERAL, "{flags:?} {frame:#x}: it grants nothing more");
        check_eq!(third.map(others, grantor, READ_ONLY), GENERAL, "{flags:?} {frame:#x}: to nobody");
        let own = mapper.place();
        let given = mapper.ask(Request::Transfer, [own.frame, grantor.domain.0.into(), GRANT]).0;
        check_eq!(given, EINVAL, "{flags:?}: nor does it wait for a frame");
        check!(mapper.store(place, 0xabc), "and takes nothing back");
        check_eq!((grantor.load(page), grantor.load(hidden)), (0xabc, 0x5ec2e7), "the frame that was granted");
        check_eq!(grantor.pin(page.frame), EINVAL);
        check_eq!(mapper.unmap(place.at, 0, handle), OKAY);
        check_eq!(grantor.flags(), flags.difference(BOTH));
    }
}

/// The table that holds the mapping's entry is hung in elsewhere, and then nowhere: the mapping is where it was made.
fn moved(grantor: &Partner, mapper: &Partner, _: &Partner) {
    const WORD: i64 = 0x3333;
    let page = grantor.page();
    grantor.grant(ACCESS, mapper, page.frame);
    check!(grantor.store(page, WORD as u64));
    let (at, span) = mapper.ask(Request::Range, []);
    let [place, other] = [at as u64, at as u64 + span].map(|at| Page { at, frame: 0 });
    let move_to = |from: Page, to: u64| check_eq!(mapper.ask(Request::Move, [from.at, to]).0, 0, "the table is moved");
    let handle = mapper.mapped(place, grantor, HOST);
    check_eq!(mapper.load(place), WORD);
    move_to(place, other.at);
    check_eq!((mapper.load(place), mapper.load(other)), (-1, WORD), "it shows where its table is");
    check_eq!(mapper.unmap(other.at, 0, handle), GENERAL, "it was not mapped here");
    check_eq!(grantor.flags(), ACCESS | BOTH);
    check_eq!(mapper.unmap(place.at, 0, handle), OKAY);
    check_eq!(grantor.flags(), ACCESS);
    check_eq!((mapper.load(place), mapper.load(other)), (-1, -1), "nor is it seen where the table is");
    // The table is none any more: the entry's reference goes with it, the mapping's does not.
    let handle = mapper.mapped(other, grantor, HOST);
    move_to(other, 0);
    check_eq!(mapper.load(other), -1);
    check_eq!(grantor.flags(), ACCESS | BOTH);
    check!(!grantor.withdraws(), "it is in use");
    check_eq!(mapper.unmap(other.at, 0, handle), OKAY);
    check_eq!(grantor.flags(), ACCESS);
    check!(grantor.withdraws());
}

fn remapped(grantor: &Partner, mapper: &Partner, _: &Partner) {
    let (page, place, other) = (grantor.page(), mapper.place(), mapper.place());
    let read_only = PteFlags::KERNEL_RO;
    grantor.grant(ACCESS, mapper, page.frame);
    // More than was granted, or elsewhere.
    let handle = mapper.mapped(place, grantor, READ_ONLY);
    for request in [Request::Remap, Request::Rewrite] {
        for (to, flags) in [(place, PteFlags::KERNEL_RW), (other, read_only), (other, PteFlags::KERNEL_RW)] {
            let result = mapper.ask(request, [to.at, page.frame, flags.bits().into()]).0;
            check_eq!(result, EINVAL, "{request:?} with {flags:?}");
        }
    }
    check!(!mapper.store(place, 1), "it is still read-only");
    check_eq!(mapper.load(other), -1);
    check_eq!(mapper.unmap(place.at, 0, handle), OKAY);
    check_eq!(mapper.remap(place, page.frame, read_only), EINVAL, "nor back again");
    // Overwritten: by nothing, and by a page of the mapper's own, which the unmap leaves there.
    let own = mapper.page();
    for request in [Request::Remap, Request::Rewrite] {
        for (frame, flags) in [(0, PteFlags::empty()), (own.frame, PteFlags::KERNEL_RW)] {
            check!(mapper.store(own, 0x0e));
            let handle = mapper.mapped(place, grantor, HOST);
            check_eq!(mapper.ask(request, [place.at, frame, flags.bits().into()]).0, 0);
            check_eq!(grantor.flags(), ACCESS | BOTH, "it is not unmapped by that");
            check!(!grantor.withdraws());
            check_eq!(mapper.remap(place, page.frame, PteFlags::KERNEL_RW), EINVAL);
            check_eq!(mapper.unmap(place.at, 0, handle), OKAY);
            check_eq!(grantor.flags(), ACCESS);
            check_eq!(mapper.load(place), if frame == 0 { -1 } else { 0x0e });
            mapper.show(place, 0, PteFlags::empty());
        }
    }
}

fn tables(grantor: &Partner, mapper: &Partner, _: &Partner) {
    let (page, place, other) = (grantor.page(), mapper.place(), mapper.place());
    check!(grantor.store(page, 0));
    grantor.grant(ACCESS, mapper, page.frame);
    // What others write to is no table.
    grantor.show(page, page.frame, PteFlags::KERNEL_RO);
    let handle = mapper.mapped(place, grantor, HOST);
    check_eq!(grantor.pin(page.frame), EINVAL, "others can write to it");
    mapper.show(place, 0, PteFlags::empty());
    check_eq!(grantor.pin(page.frame), EINVAL, "as long as it is not unmapped");
    check_eq!(mapper.unmap(place.at, 0, handle), OKAY);
    // A table is granted to be read, and no more.
    check_eq!(grantor.pin(page.frame), 0);
    for flags in [HOST, GrantMapFlags::DEVICE_MAP, HOST | GrantMapFlags::APPLICATION_MAP] {
        check_eq!(mapper.map(place, grantor, flags), GENERAL, "a table, {flags:?}");
        check_eq!(grantor.flags(), ACCESS);
    }
    let handle = mapper.mapped(place, grantor, READ_ONLY);
    check_eq!(mapper.load(place), 0);
    check!(!mapper.store(place, 1));
    check_eq!(mapper.map(other, grantor, HOST), GENERAL);
    check_eq!(mapper.remap(place, page.frame, PteFlags::KERNEL_RW), EINVAL);
    check_eq!(mapper.pin(page.frame), EINVAL, "it is nobody else's table");
    check_eq!(mapper.unmap(place.at, 0, handle), OKAY);
    check_eq!(grantor.ask(Request::Unpin, [page.frame]).0, 0);
    let handle = mapper.mapped(place, grantor, HOST);
    check_eq!(mapper.unmap(place.at, 0, handle), OKAY);
}

fn given_back(grantor: &Partner, mapper: &Partner, _: &Partner) {
    let (page, place) = (grantor.page(), mapper.place());
    check!(grantor.store(page, 0x1357));
    grantor.grant(ACCESS, mapper, page.frame);
    let handle = mapper.mapped(place, grantor, HOST);
    check_eq!(mapper.ask(Request::GiveBack, [page.frame]).0, 0, "it is not the mapper's to give");
    grantor.show(page, 0, PteFlags::empty());
    check_eq!(grantor.ask(Request::GiveBack, [page.frame]).0, 1);
    check_eq!(mapper.load(place), 0x1357, "it stays what it was");
    check_eq!(mapper.unmap(place.at, 0, handle), OKAY);
    check_eq!(mapper.map(place, grantor, READ_ONLY), GENERAL, "and then it is the grantor's no more");
    check_eq!(grantor.remap(page, page.frame, PteFlags::KERNEL_RO), EINVAL);
    check!(grantor.withdraws());
}

/// The mapper gives a frame to the grantor.
fn transfers(grantor: &Partner, mapper: &Partner, third: &Partner) {
    let accept = GrantFlags::ACCEPT_TRANSFER;
    let done = accept | GrantFlags::TRANSFER_COMMITTED | GrantFlags::TRANSFER_COMPLETED;
    // There must be room for one more.
    let place = grantor.place();
    check_eq!(grantor.ask(Request::GiveBack, [place.frame]).0, 1);
    let pfn = 40;
    let (gift, kept) = (mapper.page(), third.place());
    let give = |from: &Partner, frame| from.ask(Request::Transfer, [frame, grantor.domain.0.into(), GRANT]).0;
    check!(mapper.store(gift, 0x6171));
    grantor.grant(accept, mapper, pfn);
    check_eq!(give(mapper, gift.frame), EINVAL, "what is mapped is not given");
    check_eq!(give(third, kept.frame), EINVAL, "it waits for another domain's");
    check_eq!(give(mapper, kept.frame), EINVAL, "a frame of somebody else's");
    check_eq!(mapper.map(mapper.place(), grantor, READ_ONLY), GENERAL, "it is no grant to be mapped");
    mapper.show(gift, 0, PteFlags::empty());
    grantor.grant(ACCESS, mapper, pfn);
    check_eq!(give(mapper, gift.frame), EINVAL, "it accepts nothing");
    grantor.grant(accept, third, pfn);
    check_eq!(give(mapper, gift.frame), EINVAL, "it waits for another domain's");
    grantor.grant(accept, mapper, pfn);
    check_eq!(give(mapper, gift.frame), 0);
    let (flags, named) = grantor.ask(Request::Look, [GRANT]);
    check_eq!((GrantFlags::from_bits_retain(flags as u16), named), (done, gift.frame));
    check_eq!(grantor.ask(Request::PfnOf, [gift.frame]).0, pfn as i64, "it has the place that was named");
    check_eq!(mapper.remap(gift, gift.frame, PteFlags::KERNEL_RO), EINVAL, "its giver has lost it");
    check_eq!(give(mapper, gift.frame), EINVAL);
    grantor.show(place, gift.frame, PteFlags::KERNEL_RW);
    check_eq!(grantor.load(place), 0x6171, "with what was in it");
    check!(grantor.store(place, 1));
    let another = mapper.place();
    check_eq!(give(mapper, another.frame), EINVAL, "a grant is for one frame");
}

fn destroy(domain: DomId) -> Result<usize, Errno> {
    // SAFETY: the request is written to.
    unsafe { hypercall::dom0_op(&mut Dom0Op::new(DestroyDomain { domain, pad: 0 })) }
}

/// Domain 1, which has mapped grants of both others, ends; then domain 2, of which domain 0 has some mapped.
fn ends([zero, first, second]: &[Partner; 3]) {
    let mut grants = [(zero, zero.page()), (second, second.page())];
    for (grantor, page) in &mut grants {
        grantor.grant(ACCESS, first, page.frame);
        first.mapped(first.place(), grantor, HOST);
        first.mapped(first.place(), grantor, READ_ONLY | GrantMapFlags::DEVICE_MAP);
        check_eq!(grantor.flags(), ACCESS | BOTH);
    }
    // One whose entry is overwritten.
    let place = first.place();
    first.mapped(place, zero, HOST);
    first.show(place, 0, PteFlags::empty());
    first.end();
    check_eq!(destroy(first.domain), Ok(0));
    for (grantor, page) in grants {
        check_eq!(grantor.flags(), ACCESS, "nobody has it mapped any more");
        check!(grantor.withdraws());
        grantor.show(page, page.frame, PteFlags::KERNEL_RO);
        check_eq!(grantor.pin(page.frame), 0, "and nobody writes to it");
    }
    let (page, place, other) = (second.page(), zero.place(), zero.place());
    check!(second.store(page, 0x4242));
    second.grant(ACCESS, zero, page.frame);
    let (writing, reading) = (zero.mapped(place, second, HOST), zero.mapped(other, second, READ_ONLY));
    second.end();
    check_eq!(destroy(second.domain), Ok(0));
    check_eq!(hypercall::audit(), Ok(()), "the audit in between");
    check_eq!((zero.load(place), zero.load(other)), (0x4242, 0x4242), "it stays as long as it is mapped");
    check!(zero.store(place, 0x4343));
    check_eq!(zero.load(other), 0x4343);
    check_eq!(zero.map(zero.place(), second, READ_ONLY), BAD_DOMAIN, "nothing more is to be had");
    check_eq!(zero.unmap(place.at, 0, writing), OKAY);
    check_eq!(zero.unmap(other.at, 0, reading), OKAY);
    check_eq!((zero.load(place), zero.load(other)), (-1, -1));
}
