//! Requests of the control interface, and another domain's frames.

use crate::builder::Subject;
use proxenos_guest::abi::dom0_ops::args::*;
use proxenos_guest::abi::dom0_ops::{Dom0Argument, Dom0Op, Dom0Version};
use proxenos_guest::abi::mmu::MmuExtCommand;
use proxenos_guest::abi::{DomId, Errno, Padded};
use proxenos_guest::arch::{Arch, Word};
pub use proxenos_guest::foreign::Window;
use proxenos_guest::{boot, hypercall, memory};

/// Makes a request of a version: its argument, with what was answered in it.
pub fn ask_in<T: Dom0Argument>(version: Dom0Version, argument: T) -> Result<T, Errno> {
    let mut op = Dom0Op::new(argument);
    op.interface_version = version.raw();
    // SAFETY: what memory is written to is the request, and where an argument points, which is the caller's to give
    // away.
    unsafe { hypercall::dom0_op(&mut op) }?;
    Ok(op.argument())
}

/// Makes a request.
pub fn ask<T: Dom0Argument>(argument: T) -> Result<T, Errno> {
    ask_in(Dom0Version::V19, argument)
}

pub fn word(value: u64) -> Padded<Arch> {
    Padded::from_u64(value).expect("a word of ours")
}

/// Where domains are to run: as the command line says, or anywhere.
pub fn cpu() -> u32 {
    boot::option("cpu").and_then(|text| text.parse().ok()).unwrap_or(u32::MAX)
}

/// Creates a domain.
pub fn create(subject: Subject, kib: u64) -> Result<DomId, Errno> {
    let domain = DomId(if subject.is_ours() { 0 } else { CREATE_OTHER_ARCH });
    let made = ask(CreateDomain::<Arch> { memory_kb: word(kib), cpu: cpu(), domain, ..CreateDomain::default() })?;
    Ok(made.domain)
}

pub fn pause(domain: DomId) -> Result<(), Errno> {
    ask(PauseDomain { domain, pad: 0 }).map(drop)
}

pub fn unpause(domain: DomId) -> Result<(), Errno> {
    ask(UnpauseDomain { domain, pad: 0 }).map(drop)
}

pub fn destroy(domain: DomId) -> Result<(), Errno> {
    ask(DestroyDomain { domain, pad: 0 }).map(drop)
}

/// What is told of a domain, without its context.
pub fn info(domain: DomId) -> Result<GetDomainInfo<Arch>, Errno> {
    ask(GetDomainInfo::<Arch> { domain, ..GetDomainInfo::default() })
}

/// What it does.
pub fn flags(domain: DomId) -> DomainFlags {
    DomainFlags::from_bits_retain(info(domain).map_or(0, |info| info.flags))
}

/// A domain's frames, as many as the list has room for.
pub fn frames(domain: DomId, list: &mut [Word]) -> Result<usize, Errno> {
    let buffer = word(list.as_mut_ptr() as usize as u64);
    let room = word(list.len() as u64);
    let told = ask(GetMemList::<Arch> { domain, max_pfns: room, buffer, ..GetMemList::default() })?;
    Ok({ told.num_pfns }.to_u64() as usize)
}

/// The request that names a foreign domain.
pub fn of(domain: DomId) -> proxenos_guest::abi::mmu::MmuUpdate<Arch> {
    memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(domain.0) << 8)
}

/// A page of ours at which others' frames can be mapped.
pub fn window() -> Window {
    Window::new().expect("domain 0 has memory")
}
