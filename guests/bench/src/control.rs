//! Requests of the control interface that the measurements make: domains and the machine's memory.

use proxenos_guest::abi::dom0_ops::args::*;
use proxenos_guest::abi::dom0_ops::{Dom0Argument, Dom0Op};
use proxenos_guest::abi::{DomId, Errno, PAGE_SIZE, Padded};
use proxenos_guest::arch::{Arch, Word};
pub use proxenos_guest::foreign::Window;
use proxenos_guest::hypercall;

/// Makes a request.
pub fn ask<T: Dom0Argument>(argument: T) -> Result<T, Errno> {
    let mut op = Dom0Op::new(argument);
    // SAFETY: what memory is written to is the request, and where an argument points, which is the caller's to give
    // away.
    unsafe { hypercall::dom0_op(&mut op) }?;
    Ok(op.argument())
}

pub fn word(value: u64) -> Padded<Arch> {
    Padded::from_u64(value).expect("a word of ours")
}

/// Creates a domain of our own architecture.
pub fn create(kib: u64) -> Result<DomId, Errno> {
    let asked = CreateDomain::<Arch> { memory_kb: word(kib), cpu: u32::MAX, ..CreateDomain::default() };
    ask(asked).map(|made| made.domain)
}

pub fn unpause(domain: DomId) -> Result<(), Errno> {
    ask(UnpauseDomain { domain, pad: 0 }).map(drop)
}

pub fn destroy(domain: DomId) -> Result<(), Errno> {
    ask(DestroyDomain { domain, pad: 0 }).map(drop)
}

/// What is told of the first domain whose number is not below this one.
pub fn info(domain: DomId) -> Result<GetDomainInfo<Arch>, Errno> {
    ask(GetDomainInfo::<Arch> { domain, ..GetDomainInfo::default() })
}

/// The first of a domain's frames, as many as the list has room for: how many it was.
pub fn frames(domain: DomId, list: &mut [Word]) -> Result<usize, Errno> {
    let buffer = word(list.as_mut_ptr() as usize as u64);
    let room = word(list.len() as u64);
    let told = ask(GetMemList::<Arch> { domain, max_pfns: room, buffer, ..GetMemList::default() })?;
    Ok({ told.num_pfns }.to_u64() as usize)
}

/// Bytes of memory that nobody has.
pub fn free() -> u64 {
    let told = ask(PhysInfo::<Arch>::default()).expect("it has no errors");
    { told.free_pages }.to_u64() * PAGE_SIZE as u64
}

/// Bytes of memory that domains have.
pub fn of_domains() -> u64 {
    let (mut bytes, mut next) = (0, DomId(0));
    while let Ok(told) = info(next) {
        bytes += { told.tot_pages }.to_u64() * PAGE_SIZE as u64;
        next = DomId({ told.domain }.raw() + 1);
    }
    bytes
}

/// A page of ours at which others' frames can be mapped.
pub fn window() -> Window {
    Window::new().expect("the domain has more memory than this needs")
}
