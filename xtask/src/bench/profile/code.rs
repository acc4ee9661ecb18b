//! What lies at an address: the instruction, its symbol, and by the debug information the functions it was inlined
//! from.

use std::collections::BTreeMap;
use std::path::Path;

use addr2line::Loader;
use anyhow::{Context, Result, anyhow};
use iced_x86::{Code as Opcode, Decoder, DecoderOptions, Formatter, IntelFormatter};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// A page of the guest that its application runs at another address.
const ALIASES: [(u64, &str); 1] = [(0x100_0000_0000, "__user64_page")];
/// Its size.
const PAGE: u64 = 4096;

/// Whose code it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The hypervisor's.
    Hypervisor,
    /// The guest's.
    Guest,
}

/// One executed instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it is.
    pub address: u64,
    /// Whose it is; none if it is in neither file.
    pub side: Option<Side>,
    /// The symbol it lies in.
    pub symbol: String,
    /// The innermost function of ours that it comes from: what a library's function does is put down to who called it.
    pub function: String,
    /// Where in the source, in that function.
    pub place: String,
    /// The instruction, as an assembler has it.
    pub text: String,
}

/// The code of one file.
struct Program {
    side: Side,
    bits: u32,
    sections: Vec<(u64, Vec<u8>)>,
    /// Functions and labels of assembly, by address.
    symbols: BTreeMap<u64, String>,
    debug: Loader,
    aliases: Vec<(u64, u64)>,
}

impl Program {
    fn read(side: Side, path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = object::File::parse(&*bytes).with_context(|| format!("{} is no ELF file", path.display()))?;
        let mut sections = Vec::new();
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text && section.address() != 0) {
            sections.push((section.address(), section.data()?.to_vec()));
        }
        let alias = |&(at, name): &(u64, &str)| {
            let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
            Some((at, symbol.address()))
        };
        let aliases = ALIASES.iter().filter_map(alias).collect();
        let mut symbols = BTreeMap::new();
        for symbol in file
            .symbols()
            .filter(|symbol| matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown))
        {
            if let Ok(name @ [_, ..]) = symbol.name_bytes() {
                symbols.insert(symbol.address(), demangle(&String::from_utf8_lossy(name)));
            }
        }
        let debug = Loader::new(path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        Ok(Self { side, bits: if file.is_64() { 64 } else { 32 }, sections, symbols, debug, aliases })
    }

    /// The address that this file knows it by, and the bytes from there on.
    fn find(&self, address: u64) -> Option<(u64, &[u8])> {
        let known = self.aliases.iter().find_map(|&(at, known)| {
            let offset = address.checked_sub(at).filter(|offset| *offset < PAGE)?;
            Some(known + offset)
        });
        let known = known.unwrap_or(address);
        self.sections.iter().find_map(|(at, bytes)| {
            let offset = usize::try_from(known.checked_sub(*at)?).ok()?;
            Some((known, bytes.get(offset..).filter(|rest| !rest.is_empty())?))
        })
    }
}

/// All code that an operation may execute.
pub struct Code {
    programs: [Program; 2],
}

impl Code {
    /// Reads the files, which must have their debug information.
    pub fn read(hypervisor: &Path, guest: &Path) -> Result<Self> {
        Ok(Self { programs: [Program::read(Side::Hypervisor, hypervisor)?, Program::read(Side::Guest, guest)?] })
    }

    fn find(&self, address: u64) -> Option<(&Program, u64, &[u8])> {
        self.programs.iter().find_map(|program| {
            let (known, bytes) = program.find(address)?;
            Some((program, known, bytes))
        })
    }

    /// Whether it is the guest that reads the time-stamp counter there.
    pub fn reads_counter(&self, address: u64) -> bool {
        self.find(address).is_some_and(|(program, known, bytes)| {
            let mut decoder = Decoder::with_ip(program.bits, bytes, known, DecoderOptions::NONE);
            program.side == Side::Guest && decoder.decode().code() == Opcode::Rdtsc
        })
    }

    /// All that is known of an instruction.
    pub fn step(&self, address: u64) -> Step {
        let Some((program, known, bytes)) = self.find(address) else {
            // The hypervisor's stubs for `syscall` are written at run time, for example.
            let nobody = format!("(in no file, page {:#x})", address & !(PAGE - 1));
            return Step {
                address,
                side: None,
                symbol: nobody.clone(),
                function: nobody,
                place: String::new(),
                text: String::new(),
            };
        };
        let mut text = String::new();
        let mut decoder = Decoder::with_ip(program.bits, bytes, known, DecoderOptions::NONE);
        IntelFormatter::new().format(&decoder.decode(), &mut text);
        let symbol =
            program.symbols.range(..=known).next_back().map_or_else(|| "?".to_owned(), |(_, name)| name.clone());
        let (function, place) = origin(&program.debug, known).unwrap_or_else(|| (symbol.clone(), String::new()));
        Step { address, side: Some(program.side), symbol, function, place, text }
    }
}

/// The innermost function of ours at an address, and where in it.
fn origin(debug: &Loader, address: u64) -> Option<(String, String)> {
    let mut frames = debug.find_frames(address).ok()?;
    let mut last = None;
    while let Ok(Some(frame)) = frames.next() {
        let Some(name) = frame.function.as_ref().and_then(|name| name.raw_name().ok()) else { continue };
        let (file, line) = frame.location.as_ref().map_or(("", 0), |at| (at.file.unwrap_or(""), at.line.unwrap_or(0)));
        let of_library = is_library(file);
        last = Some((plain(&demangle(&name)).to_owned(), format!("{}:{line}", shortened(file))));
        if !of_library {
            break;
        }
    }
    last
}

/// Whether a source file is the language's, or another crate's from the registry.
fn is_library(file: &str) -> bool {
    ["/library/", "/rustc/", "/registry/", "/rust-src/"].iter().any(|part| file.contains(part))
}

/// A path from its crate's directory on.
fn shortened(file: &str) -> &str {
    let Some(src) = file.rfind("/src/") else { return file };
    let start = file[..src].rfind('/').map_or(0, |slash| slash + 1);
    &file[start..]
}

/// A name without what it is generic over.
fn plain(name: &str) -> &str {
    name.find('<').filter(|at| *at > 0).map_or(name, |at| name[..at].trim_end_matches("::"))
}

/// A name without its hash.
fn demangle(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_by_their_crate() {
        assert_eq!(shortened("/some/where/core/src/sched/bvt.rs"), "core/src/sched/bvt.rs");
        assert_eq!(shortened("hypervisor/src/main.rs"), "hypervisor/src/main.rs");
        assert_eq!(shortened("x.s"), "x.s");
        assert_eq!([plain("send<a::B, c>"), plain("<a as B>::f"), plain("f")], ["send", "<a as B>::f", "f"]);
        assert!(is_library("/usr/src/rustc/library/core/src/ptr/mod.rs"));
        assert!(!is_library("/some/where/core/src/sched/bvt.rs"));
    }

    #[test]
    fn instructions_of_this_very_program_are_found() {
        // Its own code, whose file is at hand; where it was loaded does not matter.
        let path = std::env::current_exe().expect("a program");
        let code = Code::read(&path, &path).expect("it has symbols");
        let (program, at) = (&code.programs[0], code.programs[0].sections[0].0);
        assert_eq!(program.side, Side::Hypervisor);
        let step = code.step(at);
        assert_eq!((step.address, step.side), (at, Some(Side::Hypervisor)));
        assert!(!step.text.is_empty());
        assert_eq!(code.step(u64::MAX).side, None);
        assert!(!code.reads_counter(at), "the first file is not the guest's");
    }
}
