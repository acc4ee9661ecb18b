//! Sizes and times as people write them, and as they like to read them.

use proxenos_rpc::{Kib, Nanos};

/// Reads a size: a number with K, M or G (each also with `B` or `iB`), in MiB without.
///
/// # Errors
/// What is wrong with it, for people.
pub fn parse_size(text: &str) -> Result<Kib, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => 1,
        "" | "m" | "mb" | "mib" => 1 << 10,
        "g" | "gb" | "gib" => 1 << 20,
        _ => return Err(format!("{text:?} is no size: write a number with K, M or G, such as 64M")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no size: it has no number"))?;
    // Further than a machine reaches, and within what adds up.
    number
        .checked_mul(factor)
        .filter(|kib| *kib > 0 && *kib <= 1 << 42)
        .map(Kib)
        .ok_or_else(|| format!("{text:?} is no size that a machine has"))
}

/// Reads a time: a number with `ns`, `us`, `ms` or `s`.
///
/// # Errors
/// What is wrong with it, for people.
pub fn parse_time(text: &str) -> Result<Nanos, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "" if text == "0" => 1,
        _ => return Err(format!("{text:?} is no time: write a number with ns, us, ms or s, such as 5ms")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no time: it has no number"))?;
    number.checked_mul(factor).map(Nanos).ok_or_else(|| format!("{text:?} is too long a time"))
}

/// A size in the unit that needs the fewest digits.
pub fn size(Kib(kib): Kib) -> String {
    match kib {
        0..10_240 if kib % 1024 != 0 => format!("{kib}K"),
        0..10_485_760 => format!("{}M", kib / 1024),
        _ => format!("{:.1}G", kib as f64 / 1_048_576.0),
    }
}

/// A span of time, to a tenth of a second.
pub fn seconds(Nanos(ns): Nanos) -> String {
    format!("{:.1}s", ns as f64 / 1e9)
}

/// A span of time in the largest unit that it is a whole number of.
pub fn exact(Nanos(ns): Nanos) -> String {
    match ns {
        0 => "0".to_owned(),
        ns if ns % 1_000_000_000 == 0 => format!("{}s", ns / 1_000_000_000),
        ns if ns % 1_000_000 == 0 => format!("{}ms", ns / 1_000_000),
        ns if ns % 1_000 == 0 => format!("{}us", ns / 1_000),
        ns => format!("{ns}ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("64"), Ok(Kib(64 << 10)));
        assert_eq!(parse_size("64M"), Ok(Kib(64 << 10)));
        assert_eq!(parse_size("4096 k"), Ok(Kib(4096)));
        assert_eq!(parse_size("2GiB"), Ok(Kib(2 << 20)));
        for bad in ["", "M", "0", "-1", "1.5G", "1T", "99999999999999999999", "18446744073709551615G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_read_and_written() {
        assert_eq!(parse_time("5ms"), Ok(Nanos(5_000_000)));
        assert_eq!(parse_time("0"), Ok(Nanos(0)));
        for bad in ["", "5", "ms", "5h", "-5ms", "18446744073709551615s"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        assert_eq!(size(Kib(65536)), "64M");
        assert_eq!(size(Kib(20)), "20K");
        assert_eq!(size(Kib(12 << 20)), "12.0G");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ns in any::<u64>()) {
            prop_assert_eq!(parse_time(&exact(Nanos(ns))), Ok(Nanos(ns)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,12}") {
            let _ = parse_size(&text);
            let _ = parse_time(&text);
        }
    }
}
