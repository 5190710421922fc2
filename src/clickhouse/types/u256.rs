//! The magnitude of a 256-bit number: what `Decimal(76, S)` and `Int256` need and Rust's integers don't give.

use std::cmp::Ordering;

/// An unsigned 256-bit number, least significant limb first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::clickhouse) struct U256(pub(in crate::clickhouse) [u64; 4]);

impl U256 {
    /// `self * factor + addend`, `None` when it takes more than 256 bits.
    pub(in crate::clickhouse) fn mul_add(self, factor: u64, addend: u64) -> Option<U256> {
        let mut carry = u128::from(addend);
        let limbs = self.0.map(|limb| {
            let product = u128::from(limb) * u128::from(factor) + carry;
            carry = product >> 64;
            product as u64
        });
        (carry == 0).then_some(U256(limbs))
    }

    /// `10^exponent`, saturating.
    pub(in crate::clickhouse) fn power_of_ten(exponent: u8) -> U256 {
        (0..exponent)
            .try_fold(U256([1, 0, 0, 0]), |power, _| power.mul_add(10, 0))
            .unwrap_or(U256([u64::MAX; 4]))
    }

    /// `2^exponent`; 0 from 256 on.
    pub(in crate::clickhouse) fn power_of_two(exponent: u16) -> U256 {
        let mut limbs = [0; 4];
        if let Some(limb) = limbs.get_mut(usize::from(exponent / 64)) {
            *limb = 1 << (exponent % 64);
        }
        U256(limbs)
    }

    /// `self - 1`, wrapping.
    pub(in crate::clickhouse) fn minus_one(self) -> U256 {
        let mut borrow = true;
        U256(self.0.map(|limb| {
            let (difference, below) = limb.overflowing_sub(u64::from(borrow));
            borrow = below;
            difference
        }))
    }

    /// The two's complement.
    pub(in crate::clickhouse) fn negated(self) -> U256 {
        let inverted = self.minus_one();
        U256(inverted.0.map(|limb| !limb))
    }

    /// Quotient and remainder of the division by ten.
    pub(in crate::clickhouse) fn div_rem_ten(self) -> (U256, u8) {
        let mut limbs = self.0;
        let mut remainder = 0_u128;
        for limb in limbs.iter_mut().rev() {
            let dividend = remainder << 64 | u128::from(*limb);
            *limb = (dividend / 10) as u64;
            remainder = dividend % 10;
        }
        (U256(limbs), remainder as u8)
    }

    /// A little-endian number of at most 32 bytes, sign-extended when `signed`.
    pub(in crate::clickhouse) fn from_le_slice(bytes: &[u8], signed: bool) -> U256 {
        let negative = signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xFF } else { 0 }; 32];
        for (to, from) in whole.iter_mut().zip(bytes) {
            *to = *from;
        }
        let mut limbs = [0; 4];
        for (limb, bytes) in limbs.iter_mut().zip(whole.as_chunks::<8>().0) {
            *limb = u64::from_le_bytes(*bytes);
        }
        U256(limbs)
    }

    /// The 32 bytes, least significant first.
    pub(in crate::clickhouse) fn to_le_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (to, limb) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *to = limb.to_le_bytes();
        }
        bytes
    }

    /// Whether the sign bit of the two's complement is set.
    pub(in crate::clickhouse) fn is_negative(self) -> bool {
        self.0[3] >> 63 == 1
    }
}

impl PartialOrd for U256 {
    fn partial_cmp(&self, other: &U256) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for U256 {
    fn cmp(&self, other: &U256) -> Ordering {
        self.0.iter().rev().cmp(other.0.iter().rev())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_with_carries() {
        let max = U256([u64::MAX; 4]);
        assert_eq!(U256::default().minus_one(), max);
        assert_eq!(max.mul_add(1, 1), None);
        assert_eq!(U256([u64::MAX, 0, 0, 0]).mul_add(1, 1), Some(U256::power_of_two(64)));
        assert_eq!(U256([1, 0, 0, 0]).negated(), max);
        assert_eq!(U256::default().negated(), U256::default());
        assert!(U256::power_of_two(64) > U256([u64::MAX, 0, 0, 0]));
        assert_eq!(U256::power_of_ten(19), U256([10_000_000_000_000_000_000, 0, 0, 0]));
        assert_eq!(U256::power_of_ten(76).div_rem_ten(), (U256::power_of_ten(75), 0));
        assert_eq!(U256::from_le_slice(&[0xFE], true), U256([2, 0, 0, 0]).negated());
        assert_eq!(U256::from_le_slice(&U256::power_of_ten(70).to_le_bytes(), true), U256::power_of_ten(70));
    }
}
