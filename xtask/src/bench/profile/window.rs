//! Rounds: what was executed between two reads of the time-stamp counter by the guest.

/// The last of the stretches between two reads of the counter whose length is nearest to `wanted`: from a read, which
/// is counted, to the next, which is not. `reads` tells whether the instruction at an address is one of the guest's
/// reads.
pub fn find(executed: &[u64], wanted: u64, reads: impl Fn(u64) -> bool) -> Option<&[u64]> {
    let at: Vec<usize> =
        executed.iter().enumerate().filter(|&(_, &address)| reads(address)).map(|(index, _)| index).collect();
    // The least, and of equals the first: so the last stretch comes first.
    at.windows(2)
        .rev()
        .map(|pair| &executed[pair[0]..pair[1]])
        .min_by_key(|stretch| (stretch.len() as u64).abs_diff(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_round_that_took_as_long_as_the_guest_says() {
        // 1 and 2 read the counter; a round of two that was interrupted, two whole ones, and preparations of three
        // between them.
        let executed = [1, 50, 90, 91, 92, 2, 60, 61, 1, 51, 2, 60, 61, 1, 52, 2, 70];
        let reads = |address| address <= 2;
        assert_eq!(find(&executed, 2, reads), Some(&[1, 52][..]));
        assert_eq!(find(&executed, 5, reads), Some(&[1, 50, 90, 91, 92][..]));
        assert_eq!(find(&executed[..5], 2, reads), None);
    }
}
