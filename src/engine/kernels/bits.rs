//! Dense streams of small unsigned codes: `bits` wide, least significant bit first, across bytes.
//!
//! Code `i` lies at bits `i·bits ..` of the stream, and bit `k` of the stream is bit `k % 8` of byte
//! `k / 8`. Read as little-endian 32-bit words this is what GPTQ stores along the input for 2, 3, 4
//! and 8 bits, and what compressed-tensors' pack-quantized stores since it packs across words.

/// Bytes of a stream of `count` codes of `bits` bits.
pub fn stream_bytes(count: usize, bits: u32) -> usize {
    (count * bits as usize).div_ceil(8)
}

/// Writes `codes` as a stream of `bits` (1 to 8) bits each; bits above are dropped, a last partial
/// byte is filled with zeros. `out` has [`stream_bytes`].
pub fn pack(codes: &[u8], bits: u32, out: &mut [u8]) {
    match bits {
        8 => out[..codes.len()].copy_from_slice(codes),
        4 => {
            let (pairs, rest) = codes.as_chunks::<2>();
            for (byte, pair) in out.iter_mut().zip(pairs) {
                *byte = pair[0] & 15 | pair[1] << 4;
            }
            if let (Some(&last), Some(byte)) = (rest.first(), out.last_mut()) {
                *byte = last & 15;
            }
        }
        _ => {
            let mask = (1u64 << bits) - 1;
            let width = bits as usize;
            // Eight codes fill `bits` whole bytes.
            for (eight, bytes) in codes.chunks(8).zip(out.chunks_mut(width)) {
                let word = eight
                    .iter()
                    .enumerate()
                    .fold(0u64, |word, (at, &code)| word | (u64::from(code) & mask) << (at * width));
                let count = bytes.len();
                bytes.copy_from_slice(&word.to_le_bytes()[..count]);
            }
        }
    }
}

/// Reads `out.len()` codes of `bits` (1 to 8) bits; bits that `stream` does not have count as zero.
pub fn unpack(stream: &[u8], bits: u32, out: &mut [u8]) {
    match bits {
        8 => {
            for (code, &byte) in out.iter_mut().zip(stream) {
                *code = byte;
            }
        }
        4 => {
            for (pair, &byte) in out.chunks_mut(2).zip(stream) {
                pair[0] = byte & 15;
                if let Some(second) = pair.get_mut(1) {
                    *second = byte >> 4;
                }
            }
        }
        _ => {
            let mask = (1u64 << bits) - 1;
            let width = bits as usize;
            for (eight, bytes) in out.chunks_mut(8).zip(stream.chunks(width)) {
                let mut word = [0; 8];
                word[..bytes.len()].copy_from_slice(bytes);
                let word = u64::from_le_bytes(word);
                for (at, code) in eight.iter_mut().enumerate() {
                    *code = (word >> (at * width) & mask) as u8;
                }
            }
        }
    }
}

/// Puts `value` (at most 8 bits) at bit `at` of `stream`, whose bits there are zero.
pub fn put(stream: &mut [u8], at: usize, value: u8) {
    let word = u16::from(value) << (at % 8);
    stream[at / 8] |= word as u8;
    if word > 0xff {
        stream[at / 8 + 1] |= (word >> 8) as u8;
    }
}

/// The `bits` (1 to 8) bits at bit `at` of `stream`; bits beyond its end are zero.
pub fn get(stream: &[u8], at: usize, bits: u32) -> u8 {
    let byte = |index: usize| u16::from(stream.get(index).copied().unwrap_or(0));
    let word = byte(at / 8) | byte(at / 8 + 1) << 8;
    (word >> (at % 8) & ((1 << bits) - 1)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn three_bit_codes_lie_as_gptq_stores_them() {
        let codes: Vec<u8> = (0..32).map(|at| (at * 5 % 8) as u8).collect();
        let mut out = [0; 12];
        pack(&codes, 3, &mut out);
        let word = |at: usize| u32::from_le_bytes([out[at * 4], out[at * 4 + 1], out[at * 4 + 2], out[at * 4 + 3]]);
        // Word 0: codes 0 to 9 and the low two bits of code 10; word 1 begins with its high bit.
        assert_eq!(word(0) >> 27 & 7, u32::from(codes[9]));
        assert_eq!(word(0) >> 30, u32::from(codes[10] & 3));
        assert_eq!(word(1) & 1, u32::from(codes[10] >> 2));
        assert_eq!(word(2) >> 29, u32::from(codes[31]));
    }

    proptest! {
        #[test]
        fn streams_give_their_codes_back(bits in 1u32..=8, codes in prop::collection::vec(any::<u8>(), 0..70)) {
            let codes: Vec<u8> = codes.iter().map(|code| (u32::from(*code) & ((1 << bits) - 1)) as u8).collect();
            let mut stream = vec![0xff; stream_bytes(codes.len(), bits)];
            pack(&codes, bits, &mut stream);
            let mut back = vec![0xff; codes.len()];
            unpack(&stream, bits, &mut back);
            prop_assert_eq!(&back, &codes);
            let mut one_by_one = vec![0; stream.len()];
            for (at, &code) in codes.iter().enumerate() {
                prop_assert_eq!(get(&stream, at * bits as usize, bits), code);
                put(&mut one_by_one, at * bits as usize, code);
            }
            prop_assert_eq!(one_by_one, stream);
        }
    }
}
