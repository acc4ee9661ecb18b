//! A console at this end: the terminal taken over byte by byte, and given back however that ends.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crossterm::terminal::{disable_raw_mode, enable_raw_mode};

use crate::problem::{Problem, Result};

/// Ctrl-]: leaves the console.
const LEAVE: u8 = 0x1d;

/// What was typed.
pub enum Typed {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These, and then Ctrl-].
    Leave(Vec<u8>),
    /// There will be no more.
    End,
}

/// The terminal, or whatever stands for it.
pub struct Terminal {
    input: File,
    is_raw: bool,
}

impl Terminal {
    /// Takes standard input over, raw if it is a terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn take() -> Result<Self> {
        let refused = |error| Problem::system("cannot take the terminal over", error);
        let stdin = std::io::stdin();
        // Not through the standard library's buffer, which would hide bytes from `poll`.
        let input = File::from(stdin.as_fd().try_clone_to_owned().map_err(refused)?);
        let is_raw = stdin.is_terminal();
        if is_raw {
            enable_raw_mode().map_err(refused)?;
        }
        Ok(Self { input, is_raw })
    }

    /// Whether a person sits there.
    pub fn is_raw(&self) -> bool {
        self.is_raw
    }

    /// What to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// Reads what was typed, at most `max` bytes. Ctrl-] means something at a terminal only: a file may have it.
    pub fn read(&mut self, max: usize) -> Typed {
        let mut buffer = vec![0; max.clamp(1, 4096)];
        let len = match self.input.read(&mut buffer) {
            Ok(0) => return Typed::End,
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(_) => return Typed::End,
        };
        buffer.truncate(len);
        match buffer.iter().position(|&byte| byte == LEAVE).filter(|_| self.is_raw) {
            Some(at) => {
                buffer.truncate(at);
                Typed::Leave(buffer)
            }
            None => Typed::Bytes(buffer),
        }
    }

    /// Writes console output. A raw terminal does not go back to the first column by itself.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let written = if self.is_raw {
            let mut text = Vec::with_capacity(bytes.len() + 16);
            let mut last = 0;
            for &byte in bytes {
                if byte == b'\n' && last != b'\r' {
                    text.push(b'\r');
                }
                text.push(byte);
                last = byte;
            }
            out.write_all(&text)
        } else {
            out.write_all(bytes)
        };
        written.and_then(|()| out.flush()).map_err(|error| Problem::system("cannot write the console's output", error))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.is_raw {
            // There is nobody to tell.
            drop(disable_raw_mode());
        }
    }
}
