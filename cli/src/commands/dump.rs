//! `dump`: the virtual CPU and the memory of a domain.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use proxenos_abi::arch::{GuestArch, GuestWord, X86_32, X86_64};
use proxenos_abi::context::FullExecutionContext;
use proxenos_abi::{x86_32, x86_64};
use proxenos_rpc::{AddressSpace, Arch, Cause, Context, Kib, MAX_CHUNK, Reply, Request, Subject};
use serde_json::{Map, Value, json};
use zerocopy::FromBytes;

use super::{QUICK, open};
use crate::args::{Cli, DumpArgs};
use crate::problem::{Problem, Result, Status};
use crate::session::Session;
use crate::upload::unexpected;
use crate::view;

/// A virtual CPU in names and numbers.
struct Cpu {
    /// All that there is, by name.
    registers: Vec<(&'static str, u64)>,
    /// Where its stack is.
    stack: u64,
    /// Hexadecimal digits of a register.
    digits: usize,
}

/// `dump`.
pub fn command(cli: &Cli, args: &DumpArgs) -> Result<u8> {
    let domain = &args.domain.domain;
    let mut session = open(cli)?;
    let doing = format!("cannot dump {domain}");
    let Reply::Context(context) = session.call(&doing, Request::Context(domain.clone()), cli.deadline(QUICK))? else {
        return Err(unexpected());
    };
    // From here on by number: the name may come to mean another.
    let subject = Subject::Id(context.info.id);
    let cpu = decode(&context)?;
    let at = args.at.unwrap_or(cpu.stack);
    let shown = read(cli, &mut session, &subject, AddressSpace::Virtual, at, args.len)?;
    if cli.json {
        view::print_json(&as_json(&context, &cpu, at, &shown))?;
    } else {
        view::print(&as_text(&context, &cpu, at, &shown))?;
    }
    if let Some(path) = &args.memory {
        write_memory(cli, &mut session, &subject, context.info.memory, path)?;
    }
    Ok(0)
}

fn decode(context: &Context) -> Result<Cpu> {
    let short = || Problem::new(Status::Protocol, "the virtual CPU came in a layout that is not its architecture's");
    match context.arch {
        Arch::X86_32 => {
            let full = FullExecutionContext::<X86_32>::read_from_bytes(&context.raw).map_err(|_| short())?;
            let x86_32::ExecutionContext {
                ebx,
                ecx,
                edx,
                esi,
                edi,
                ebp,
                eax,
                ds,
                es,
                fs,
                gs,
                eip,
                cs,
                eflags,
                esp,
                ss,
                ..
            } = full.cpu_ctxt;
            let registers = [
                ("eip", eip),
                ("eflags", eflags),
                ("esp", esp),
                ("ebp", ebp),
                ("eax", eax),
                ("ebx", ebx),
                ("ecx", ecx),
                ("edx", edx),
                ("esi", esi),
                ("edi", edi),
                ("cs", cs),
                ("ss", ss),
                ("ds", ds),
                ("es", es),
                ("fs", fs),
                ("gs", gs),
            ];
            let registers = registers.map(|(name, value)| (name, u64::from(value)));
            Ok(Cpu { registers: [&registers[..], &system(&full)].concat(), stack: esp.into(), digits: 8 })
        }
        Arch::X86_64 => {
            let full = FullExecutionContext::<X86_64>::read_from_bytes(&context.raw).map_err(|_| short())?;
            let x86_64::ExecutionContext {
                r15,
                r14,
                r13,
                r12,
                rbp,
                rbx,
                r11,
                r10,
                r9,
                r8,
                rax,
                rcx,
                rdx,
                rsi,
                rdi,
                rip,
                cs,
                eflags,
                rsp,
                ss,
            } = full.cpu_ctxt;
            let registers = [
                ("rip", rip),
                ("rflags", eflags),
                ("rsp", rsp),
                ("rbp", rbp),
                ("rax", rax),
                ("rbx", rbx),
                ("rcx", rcx),
                ("rdx", rdx),
                ("rsi", rsi),
                ("rdi", rdi),
                ("r8", r8),
                ("r9", r9),
                ("r10", r10),
                ("r11", r11),
                ("r12", r12),
                ("r13", r13),
                ("r14", r14),
                ("r15", r15),
                ("cs", cs),
                ("ss", ss),
            ];
            Ok(Cpu { registers: [&registers[..], &system(&full)].concat(), stack: rsp, digits: 16 })
        }
    }
}

/// What both architectures have beside the general registers.
fn system<A: GuestArch>(full: &FullExecutionContext<A>) -> Vec<(&'static str, u64)> {
    let debug = full.debugreg;
    vec![
        ("pt_base", full.pt_base.to_u64()),
        ("kernel_ss", full.guestos_ss.to_u64()),
        ("kernel_sp", full.guestos_esp.to_u64()),
        ("event_cs", full.event_callback_cs.to_u64()),
        ("event_ip", full.event_callback_eip.to_u64()),
        ("failsafe_cs", full.failsafe_callback_cs.to_u64()),
        ("failsafe_ip", full.failsafe_callback_eip.to_u64()),
        ("gdt_entries", full.gdt_ents.to_u64()),
        ("ldt_base", full.ldt_base.to_u64()),
        ("ldt_entries", full.ldt_ents.to_u64()),
        ("dr6", debug[6].to_u64()),
        ("dr7", debug[7].to_u64()),
    ]
}

fn as_json(context: &Context, cpu: &Cpu, at: u64, shown: &[u8]) -> Value {
    let registers: Map<String, Value> =
        cpu.registers.iter().map(|(name, value)| ((*name).to_owned(), format!("{value:#x}").into())).collect();
    let bytes: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "domain": view::domain(&context.info),
        "registers": registers,
        "memory": { "address": format!("{at:#x}"), "bytes": bytes },
    })
}

fn as_text(context: &Context, cpu: &Cpu, at: u64, shown: &[u8]) -> String {
    let info = &context.info;
    let (digits, arch) = (cpu.digits, view::arch(context.arch));
    let mut text = format!("domain {} ({}), {arch}, {}\n", info.id, info.name, view::state(info.state));
    for row in cpu.registers.chunks(if digits == 8 { 4 } else { 3 }) {
        let cells: Vec<String> = row.iter().map(|(name, value)| format!("{name:>11} {value:0digits$x}")).collect();
        text += &format!("{}\n", cells.join(" "));
    }
    text += &format!("memory at {at:0digits$x}:{}\n", if shown.is_empty() { " cannot be read" } else { "" });
    for (row, bytes) in shown.chunks(16).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let plain: String =
            bytes.iter().map(|&b| if (0x20..0x7f).contains(&b) { char::from(b) } else { '.' }).collect();
        let address = at.wrapping_add(row as u64 * 16);
        text += &format!("{address:0digits$x}  {:47}  {plain}\n", hex.join(" "));
    }
    text
}

/// Reads memory; what is not there is an empty answer.
fn read(
    cli: &Cli,
    session: &mut Session,
    domain: &Subject,
    space: AddressSpace,
    address: u64,
    len: u32,
) -> Result<Vec<u8>> {
    let request = Request::ReadMemory { domain: domain.clone(), space, address, len };
    match session.call_with(request, cli.deadline(QUICK), |_| {})? {
        Ok(Reply::Bytes(bytes)) if bytes.len() <= len as usize => Ok(bytes.into_vec()),
        Ok(_) => Err(unexpected()),
        Err(failure) if failure.cause == Cause::BadAddress => Ok(Vec::new()),
        Err(failure) => Err(Problem::refused(format!("cannot read the memory of {domain}"), &failure)),
    }
}

/// A frame.
const PAGE: u64 = 4096;

fn write_memory(cli: &Cli, session: &mut Session, domain: &Subject, memory: Kib, path: &Path) -> Result<()> {
    let unwritten = |error: std::io::Error| Problem::system(format!("cannot write {}", path.display()), error);
    let mut file = std::fs::File::create(path).map_err(unwritten)?;
    let end = memory.0.saturating_mul(1024);
    let mut address = 0;
    while address < end {
        let len = u32::try_from((end - address).min(MAX_CHUNK as u64)).unwrap_or(u32::MAX);
        let bytes = read(cli, session, domain, AddressSpace::PseudoPhysical, address, len)?;
        if bytes.is_empty() {
            // A frame that it gave back.
            address = (address & !(PAGE - 1)) + PAGE;
            continue;
        }
        // Zeros stay holes.
        if bytes.iter().any(|&byte| byte != 0) {
            file.seek(SeekFrom::Start(address)).and_then(|_| file.write_all(&bytes)).map_err(unwritten)?;
        }
        address += bytes.len() as u64;
    }
    file.set_len(end).map_err(unwritten)
}
