//! Making bad images out of good ones.
//!
//! A change that changes nothing is an error: a bad image that is not bad would pass for a refusal that works.

use anyhow::{Context, Result, ensure};

use crate::guest_meta::Spoil;

/// Applies the changes in turn.
pub fn apply(mut image: Vec<u8>, changes: &[Spoil]) -> Result<Vec<u8>> {
    for change in changes {
        let before = image.clone();
        match change {
            Spoil::Truncate(size) => image.truncate(usize::try_from(*size)?),
            Spoil::Write { at, bytes } => write(&mut image, *at, bytes)?,
            Spoil::Replace { from, to } => replace(&mut image, from.as_bytes(), to.as_bytes())?,
            Spoil::Segment { load, at, bytes } => {
                let header = program_header(&image, *load)?;
                write(&mut image, header + at, bytes)?;
            }
        }
        ensure!(image != before, "{change:?} changes nothing");
    }
    Ok(image)
}

fn write(image: &mut [u8], at: u64, bytes: &[u8]) -> Result<()> {
    let start = usize::try_from(at)?;
    let place = image.get_mut(start..).and_then(|rest| rest.get_mut(..bytes.len()));
    place.with_context(|| format!("offset {at} is beyond the image"))?.copy_from_slice(bytes);
    Ok(())
}

fn replace(image: &mut [u8], from: &[u8], to: &[u8]) -> Result<()> {
    ensure!(from.len() == to.len() && !from.is_empty(), "a replacement keeps the length");
    let mut at = 0;
    while at + from.len() <= image.len() {
        if image[at..].starts_with(from) {
            image[at..at + to.len()].copy_from_slice(to);
            at += from.len();
        } else {
            at += 1;
        }
    }
    Ok(())
}

/// File offset of the nth PT_LOAD's program header, in either class.
fn program_header(image: &[u8], load: usize) -> Result<u64> {
    let number = |at: usize, size: usize| -> Result<u64> {
        let bytes = image.get(at..at + size).context("the image has no such header")?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (table, size, count) = match number(4, 1)? {
        2 => (number(32, 8)?, number(54, 2)?, number(56, 2)?),
        _ => (number(28, 4)?, number(42, 2)?, number(44, 2)?),
    };
    let mut loads = Vec::new();
    for at in (0..count).map(|index| table + index * size) {
        if number(usize::try_from(at)?, 4)? == 1 {
            loads.push(at);
        }
    }
    loads.get(load).copied().with_context(|| format!("the image has {} PT_LOAD segments", loads.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf() -> Vec<u8> {
        crate::multiboot::tests::sample_elf64(b"XEN_VER=2.0,XEN_VER=2.0", 0, 0x10_0000)
    }

    #[test]
    fn each_change_is_made() {
        assert_eq!(apply(elf(), &[Spoil::Truncate(100)]).expect("valid").len(), 100);
        assert_eq!(apply(elf(), &[Spoil::Write { at: 4, bytes: vec![1] }]).expect("valid")[4], 1);
        let replace = Spoil::Replace { from: "=2.0".to_owned(), to: "=9.9".to_owned() };
        assert!(apply(elf(), &[replace]).expect("valid").ends_with(b"XEN_VER=9.9,XEN_VER=9.9"));
        let segment = Spoil::Segment { load: 0, at: 16, bytes: vec![0xaa] };
        assert_eq!(apply(elf(), &[segment]).expect("valid")[64 + 16], 0xaa);
    }

    #[test]
    fn a_change_without_effect_is_refused() {
        let size = elf().len() as u64;
        for change in [
            Spoil::Truncate(size),
            Spoil::Write { at: 0, bytes: vec![0x7f] },
            Spoil::Write { at: size, bytes: vec![1] },
            Spoil::Replace { from: "absent".to_owned(), to: "ABSENT".to_owned() },
            Spoil::Replace { from: "XEN".to_owned(), to: "XE".to_owned() },
            Spoil::Segment { load: 1, at: 0, bytes: vec![1] },
        ] {
            assert!(apply(elf(), std::slice::from_ref(&change)).is_err(), "{change:?}");
        }
    }
}
