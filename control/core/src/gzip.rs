//! Gzipped images (RFC 1952): a header, DEFLATE, a CRC-32 and a length.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF as USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use proxenos_rpc::Checksum;

/// What is wrong with a gzipped file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GzipError {
    /// Its header is not one, or ends early.
    Header,
    /// Its contents are damaged.
    Contents,
    /// Unpacked, it is larger than so many bytes.
    TooLarge(usize),
    /// Contents and checksum, or length, do not agree.
    Checksum,
}

impl fmt::Display for GzipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the gzip header is damaged"),
            Self::Contents => f.write_str("the gzipped contents are damaged"),
            Self::TooLarge(most) => write!(f, "the gzipped file is larger than {} MiB when unpacked", most >> 20),
            Self::Checksum => f.write_str("the gzipped contents do not agree with their checksum"),
        }
    }
}

impl core::error::Error for GzipError {}

/// Bits of the header's flags.
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const HEADER_CRC: u8 = 1 << 1;
/// Bytes of the fixed part, and of what is behind the contents.
const HEADER: usize = 10;
const TRAILER: usize = 8;

/// Whether this begins as a gzipped file does.
#[must_use]
pub fn is_gzip(file: &[u8]) -> bool {
    file.starts_with(&[0x1f, 0x8b])
}

/// Unpacks a gzipped file of up to `most` bytes.
///
/// # Errors
/// See [`GzipError`].
pub fn unpack(file: &[u8], most: usize) -> Result<Vec<u8>, GzipError> {
    let (body, sum, len) = parts(file)?;
    if len > most {
        return Err(GzipError::TooLarge(most));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| GzipError::TooLarge(len))?;
    bytes.resize(len, 0);
    let mut state = Box::<DecompressorOxide>::default();
    let (status, _, written) = decompress(&mut state, body, &mut bytes, 0, USING_NON_WRAPPING_OUTPUT_BUF);
    match status {
        TINFLStatus::Done if written == len && Checksum::of(&bytes) == sum => Ok(bytes),
        // It ends elsewhere than where it says.
        TINFLStatus::Done | TINFLStatus::HasMoreOutput => Err(GzipError::Checksum),
        _ => Err(GzipError::Contents),
    }
}

/// How many bytes a gzipped file says that it is unpacked.
///
/// # Errors
/// [`GzipError::Header`].
pub fn unpacked_len(file: &[u8]) -> Result<usize, GzipError> {
    parts(file).map(|(_, _, len)| len)
}

/// The contents, their checksum and their length.
fn parts(file: &[u8]) -> Result<(&[u8], Checksum, usize), GzipError> {
    let body = body(file).ok_or(GzipError::Header)?;
    let (body, trailer) = body.split_last_chunk::<TRAILER>().ok_or(GzipError::Header)?;
    let [a, b, c, d, e, f, g, h] = *trailer;
    Ok((body, Checksum(u32::from_le_bytes([a, b, c, d])), u32::from_le_bytes([e, f, g, h]) as usize))
}

/// What is behind the header.
fn body(file: &[u8]) -> Option<&[u8]> {
    let (header, mut rest) = file.split_at_checked(HEADER)?;
    // DEFLATE is the only method there is.
    if !is_gzip(header) || header[2] != 8 {
        return None;
    }
    let flags = header[3];
    if flags & EXTRA != 0 {
        let (len, behind) = rest.split_first_chunk::<2>()?;
        rest = behind.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for _ in 0..(flags & (NAME | COMMENT)).count_ones() {
        let end = rest.iter().position(|&byte| byte == 0)?;
        rest = &rest[end + 1..];
    }
    if flags & HEADER_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gzip(bytes: &[u8], flags: u8) -> Vec<u8> {
        let mut file = alloc::vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3];
        if flags & EXTRA != 0 {
            file.extend([3, 0, 1, 2, 3]);
        }
        for flag in [NAME, COMMENT] {
            if flags & flag != 0 {
                file.extend(b"vmlinux\0");
            }
        }
        if flags & HEADER_CRC != 0 {
            file.extend([1, 2]);
        }
        file.extend(miniz_oxide::deflate::compress_to_vec(bytes, 6));
        file.extend(Checksum::of(bytes).0.to_le_bytes());
        file.extend((bytes.len() as u32).to_le_bytes());
        file
    }

    #[test]
    fn files_with_every_header_are_unpacked() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i / 7) as u8).collect();
        for flags in 0..32 {
            assert_eq!(unpack(&gzip(&bytes, flags), 1 << 20).as_deref(), Ok(&bytes[..]), "flags {flags:#x}");
        }
        assert_eq!(unpack(&gzip(&bytes, 0), bytes.len() - 1), Err(GzipError::TooLarge(bytes.len() - 1)));
        assert_eq!(unpack(&gzip(&bytes, 0), bytes.len()).map(|b| b.len()), Ok(bytes.len()));
    }

    #[test]
    fn damage_is_named() {
        let file = gzip(b"some text", 0);
        let len = file.len();
        let damaged = |at: usize| {
            let mut file = file.clone();
            file[at] ^= 0x55;
            unpack(&file, 1000)
        };
        assert_eq!(damaged(0), Err(GzipError::Header));
        assert_eq!(damaged(2), Err(GzipError::Header));
        assert_eq!(damaged(len - 1), Err(GzipError::TooLarge(1000)));
        assert_eq!(damaged(len - 4), Err(GzipError::Checksum), "it says that it is shorter, or longer");
        assert_eq!(damaged(len - 5), Err(GzipError::Checksum));
        assert_eq!(unpack(&file[..9], 1000), Err(GzipError::Header));
        assert_eq!(unpack(&file[..12], 1000), Err(GzipError::Header));
    }

    proptest! {
        #[test]
        fn any_bytes(mut file in prop::collection::vec(any::<u8>(), 0..200), begin in any::<bool>()) {
            if begin && file.len() > 3 {
                file[..3].copy_from_slice(&[0x1f, 0x8b, 8]);
            }
            let _ = unpack(&file, 1000);
        }
    }
}
