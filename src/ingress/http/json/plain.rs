/// How many bytes of a string need no escape: those before the first quote, backslash or control character.
pub fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 0xFF;
    // Eight at a time. The high bit of each byte below a limit is set, and perhaps, by a borrow, of bytes
    // behind one that is: so the first that is set tells the truth.
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quotes = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslashes = below(word ^ (ONES * u64::from(b'\\')), 1);
        let found = (quotes | backslashes | below(word, 0x20)) & (ONES * 0x80);
        if found != 0 {
            return 8 * index + found.trailing_zeros() as usize / 8;
        }
    }
    8 * words.len() + rest.iter().position(|&byte| !is_plain(byte)).unwrap_or(rest.len())
}

const fn is_plain(byte: u8) -> bool {
    !matches!(byte, ..0x20 | b'"' | b'\\')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn eight_at_a_time_end_where_one_at_a_time_does(
            bytes in prop::collection::vec(
                prop_oneof![8 => any::<u8>(), 1 => prop::sample::select(&b"\0\x1F \"#[\\]\x7F\x80\xFF"[..])],
                0..40,
            ),
            plain in 0_usize..24,
        ) {
            let text = [vec![b'a'; plain], bytes].concat();
            let expected = text.iter().position(|&byte| !is_plain(byte)).unwrap_or(text.len());
            prop_assert_eq!(plain_length(&text), expected);
        }
    }
}
