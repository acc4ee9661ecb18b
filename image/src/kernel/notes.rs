//! What a kernel says of itself in its `__xen_guest` section: comma-separated `KEY=VALUE`, ended by NUL.

use super::ImageError;

/// How a guest changes its page tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PageTableMode {
    /// By hypercalls.
    #[default]
    Hypercalls,
    /// By plain writes, from the start (`PT_MODE_WRITABLE`).
    Writable,
}

/// The keys that matter to the builder.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct GuestNotes {
    pub(super) virt_base: Option<u64>,
    pub(super) page_tables: PageTableMode,
    pub(super) wants_symbols: bool,
}

impl GuestNotes {
    pub(super) fn parse(section: &[u8]) -> Result<Self, ImageError> {
        let text = section.split(|&byte| byte == 0).next().unwrap_or_default();
        let mut notes = Self::default();
        let (mut version, mut loader) = (false, false);
        for item in text.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            match item {
                b"XEN_VER=2.0" => version = true,
                b"LOADER=generic" | b"GUEST_OS=linux" => loader = true,
                b"PT_MODE_WRITABLE" => notes.page_tables = PageTableMode::Writable,
                b"BSD_SYMTAB" => notes.wants_symbols = true,
                _ => {
                    if let Some(value) = item.strip_prefix(b"VIRT_BASE=") {
                        notes.virt_base = Some(number(value).ok_or(ImageError::BadVirtBase)?);
                    }
                }
            }
        }
        match (version, loader) {
            (true, true) => Ok(notes),
            (true, false) => Err(ImageError::NoLoader),
            (false, _) => Err(ImageError::NoVersion),
        }
    }
}

/// A number as C's `strtoul` reads it with base 0: hexadecimal after `0x`, octal after `0`, else decimal.
fn number(text: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(text).ok()?;
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    // `from_str_radix` would take a sign.
    if digits.starts_with('+') { None } else { u64::from_str_radix(digits, radix).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read() {
        let notes = GuestNotes::parse(b"GUEST_OS=netbsd,XEN_VER=2.0,LOADER=generic,BSD_SYMTAB\0junk,VIRT_BASE=x");
        assert_eq!(notes, Ok(GuestNotes { wants_symbols: true, ..GuestNotes::default() }));
        let notes = GuestNotes::parse(b"XEN_VER=2.0,GUEST_OS=linux,VIRT_BASE=0xC0000000,PT_MODE_WRITABLE");
        let page_tables = PageTableMode::Writable;
        assert_eq!(notes, Ok(GuestNotes { virt_base: Some(0xc000_0000), page_tables, wants_symbols: false }));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(GuestNotes::parse(b""), Err(ImageError::NoVersion));
        assert_eq!(GuestNotes::parse(b"XEN_VER=3.0,LOADER=generic"), Err(ImageError::NoVersion));
        assert_eq!(GuestNotes::parse(b"XEN_VER=2.01,LOADER=generic"), Err(ImageError::NoVersion));
        assert_eq!(GuestNotes::parse(b"XEN_VER=2.0,LOADER=none"), Err(ImageError::NoLoader));
        assert_eq!(GuestNotes::parse(b"XEN_VER=2.0,LOADER=generic,VIRT_BASE=base"), Err(ImageError::BadVirtBase));
    }

    #[test]
    fn numbers_are_c_s() {
        assert_eq!(number(b"0xC0000000"), Some(0xc000_0000));
        assert_eq!(number(b"010"), Some(8));
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"12"), Some(12));
        for bad in [&b""[..], b"0x", b"+1", b"0x+1", b"\xff", b"08", b"0x10000000000000000"] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }
}
