//! Images put together by hand, so that tests have good ones, and ones with just one fault.

use alloc::vec;
use alloc::vec::Vec;
use proxenos_abi::Arch;

/// A `PT_LOAD` to be: address, contents, size in memory.
pub struct Load {
    /// `p_vaddr`.
    pub at: u64,
    /// What is in the file.
    pub bytes: Vec<u8>,
    /// `p_memsz`.
    pub size: u64,
}

/// What an image is built from.
pub struct Recipe {
    /// Its class and machine.
    pub arch: Arch,
    /// `e_entry`.
    pub entry: u64,
    /// Its segments.
    pub loads: Vec<Load>,
    /// Its `__xen_guest` section.
    pub guest: &'static [u8],
    /// Contents of a symbol table and its strings.
    pub symbols: Option<(Vec<u8>, Vec<u8>)>,
}

/// What the `__xen_guest` section of any kernel says.
pub const GENERIC: &[u8] = b"XEN_VER=2.0,LOADER=generic\0";

impl Recipe {
    /// A small kernel: code at `at`, data with bss a page above.
    #[must_use]
    pub fn small(arch: Arch, at: u64) -> Self {
        let code = Load { at, bytes: (0..0x900).map(|i| i as u8).collect(), size: 0x900 };
        let data = Load { at: at + 0x1010, bytes: vec![0xda; 0x123], size: 0x2345 };
        Self { arch, entry: at + 4, loads: vec![code, data], guest: GENERIC, symbols: None }
    }

    /// The file. Sections: null, `__xen_guest`, names, an unrelated string table, then symbols and their strings.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let wide = self.arch == Arch::X86_64;
        let word = if wide { 8 } else { 4 };
        let (header, program, section) = if wide { (64, 56, 64) } else { (52, 32, 40) };
        let names = b"\0__xen_guest\0.shstrtab\0".to_vec();
        let mut sections =
            vec![(1u32, 1u32, self.guest.to_vec(), 0u32), (13, 3, names, 0), (0, 3, b"\0no".to_vec(), 0)];
        if let Some((table, strings)) = &self.symbols {
            sections.push((0, 2, table.clone(), 5));
            sections.push((0, 3, strings.clone(), 0));
        }

        let mut at = header + program * self.loads.len();
        let mut contents: Vec<u8> = Vec::new();
        let mut programs: Vec<u8> = Vec::new();
        let push = |out: &mut Vec<u8>, width: usize, value: u64| out.extend(&value.to_le_bytes()[..width]);
        for load in &self.loads {
            let flags = 4;
            push(&mut programs, 4, 1);
            if wide {
                push(&mut programs, 4, flags);
            }
            push(&mut programs, word, at as u64);
            push(&mut programs, word, load.at);
            push(&mut programs, word, 0xdead_0000);
            push(&mut programs, word, load.bytes.len() as u64);
            push(&mut programs, word, load.size);
            if !wide {
                push(&mut programs, 4, flags);
            }
            push(&mut programs, word, 0x1000);
            at += load.bytes.len();
            contents.extend(&load.bytes);
        }
        let mut headers = vec![0; section];
        for (name, kind, bytes, link) in &sections {
            push(&mut headers, 4, u64::from(*name));
            push(&mut headers, 4, u64::from(*kind));
            push(&mut headers, word, 0);
            push(&mut headers, word, 0);
            push(&mut headers, word, at as u64);
            push(&mut headers, word, bytes.len() as u64);
            push(&mut headers, 4, u64::from(*link));
            push(&mut headers, 4, 0);
            push(&mut headers, word, 1);
            push(&mut headers, word, 0);
            at += bytes.len();
            contents.extend(bytes);
        }

        let mut file = vec![0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        push(&mut file, 2, 2);
        push(&mut file, 2, if wide { 62 } else { 3 });
        push(&mut file, 4, 1);
        push(&mut file, word, self.entry);
        push(&mut file, word, header as u64);
        push(&mut file, word, at as u64);
        push(&mut file, 4, 0);
        for half in [header, program, self.loads.len(), section, sections.len() + 1, 2] {
            push(&mut file, 2, half as u64);
        }
        assert_eq!(file.len(), header);
        file.extend(programs);
        file.extend(contents);
        file.extend(headers);
        file
    }
}
