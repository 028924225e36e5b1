use super::Problem;

/// A number as it is written. What it is as an element is asked of it afterwards.
#[derive(Clone, Copy, Debug)]
pub struct Number<'a> {
    text: &'a str,
    negative: bool,
    /// The digits without sign, point and exponent, if [`exact`](Self::exact).
    mantissa: u64,
    /// The power of ten that the mantissa is to be multiplied by.
    exponent: i32,
    form: Form,
    /// Whether the digits are few enough for the mantissa; of more, the text tells the value.
    exact: bool,
}

/// As many digits as always fit 64 bits.
const EXACT_DIGITS: usize = 19;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Integer,
    Decimal,
    NotANumber,
    Infinity,
}

impl<'a> Number<'a> {
    /// Reads the number at `start` of `text` and returns it with its length.
    ///
    /// # Errors
    /// What is wrong, and at which offset.
    #[inline]
    pub fn read(text: &'a str, start: usize) -> Result<(Self, usize), (Problem, usize)> {
        let bytes = text.as_bytes();
        let byte = |at: usize| bytes.get(at).copied();
        let negative = byte(start) == Some(b'-');
        let digits_start = start + usize::from(negative);
        let mut mantissa = 0;
        let mut at = match byte(digits_start) {
            Some(b'0') => digits_start + 1,
            Some(b'1'..=b'9') => read_digits(bytes, digits_start, &mut mantissa),
            _ => return Self::special(text, start, digits_start, negative),
        };
        let mut digits = at - digits_start;
        let mut exponent = 0_i64;
        let mut form = Form::Integer;
        if byte(at) == Some(b'.') {
            let fraction = at + 1;
            at = read_digits(bytes, fraction, &mut mantissa);
            if at == fraction {
                return Err((Problem::MissingFraction, at));
            }
            form = Form::Decimal;
            digits += at - fraction;
            exponent = -((at - fraction) as i64);
        }
        if let Some(b'e' | b'E') = byte(at) {
            at += 1;
            let sign = byte(at);
            at += usize::from(matches!(sign, Some(b'+' | b'-')));
            let power_start = at;
            let mut power = 0_i64;
            while let Some(digit @ b'0'..=b'9') = byte(at) {
                power = (power * 10 + i64::from(digit - b'0')).min(i64::from(i32::MAX));
                at += 1;
            }
            if at == power_start {
                return Err((Problem::MissingExponent, at));
            }
            form = Form::Decimal;
            exponent += if sign == Some(b'-') { -power } else { power };
        }
        let number = Self {
            text: text.get(start..at).unwrap_or_default(),
            negative,
            mantissa,
            exponent: exponent.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32,
            form,
            exact: digits <= EXACT_DIGITS,
        };
        Ok((number, at - start))
    }

    fn special(
        text: &'a str,
        start: usize,
        at: usize,
        negative: bool,
    ) -> Result<(Self, usize), (Problem, usize)> {
        let rest = text.get(at..).unwrap_or_default();
        let (form, length) =
            [("NaN", Form::NotANumber), ("Infinity", Form::Infinity), ("Inf", Form::Infinity)]
                .into_iter()
                .find(|(name, _)| rest.starts_with(name))
                .map(|(name, form)| (form, name.len()))
                .ok_or((Problem::InvalidValue, at))?;
        let length = at + length - start;
        let text = text.get(start..start + length).unwrap_or_default();
        Ok((Self { text, negative, mantissa: 0, exponent: 0, form, exact: true }, length))
    }

    /// As it is written.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Whether it is written without fraction and exponent.
    fn is_integer(&self) -> bool {
        self.form == Form::Integer
    }

    /// The value, if it is an integer of that range.
    pub fn to_u64(self) -> Option<u64> {
        let value = self.magnitude()?;
        (!self.negative || value == 0).then_some(value)
    }

    /// The value, if it is an integer of that range.
    pub fn to_i64(self) -> Option<i64> {
        let magnitude = self.magnitude()?;
        if self.negative {
            0_i64.checked_sub_unsigned(magnitude)
        } else {
            i64::try_from(magnitude).ok()
        }
    }

    /// An integer without its sign.
    fn magnitude(self) -> Option<u64> {
        match self.is_integer() {
            true if self.exact => Some(self.mantissa),
            true => self.text.trim_start_matches('-').parse().ok(),
            false => None,
        }
    }

    /// The nearest value; `None` when it passes the largest finite one.
    pub fn to_f64(self) -> Option<f64> {
        match self.to_f64_fast() {
            Some(value) => Some(value),
            None => self.text.parse().ok().filter(|value: &f64| value.is_finite()),
        }
    }

    /// The nearest value; `None` when it passes the largest finite one.
    pub fn to_f32(self) -> Option<f32> {
        // Rounding twice differs from rounding once only if the first result lies exactly between
        // two neighbours of the second kind: then the dropped 29 bits are a one and zeros.
        const DROPPED: u64 = (1 << 29) - 1;
        const MIDPOINT: u64 = 1 << 28;
        if let Some(value) = self.to_f64_fast() {
            let narrow = value as f32;
            let normal = narrow.abs() >= f32::MIN_POSITIVE;
            if !value.is_finite()
                || value == 0.0
                || normal && narrow.is_finite() && value.to_bits() & DROPPED != MIDPOINT
            {
                return Some(narrow);
            }
        }
        self.text.parse().ok().filter(|value: &f32| value.is_finite())
    }

    /// The value where one operation on exact operands gives it, which rounds once.
    fn to_f64_fast(self) -> Option<f64> {
        const POWERS: [f64; 23] = [
            1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
            1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
        ];
        const MANTISSA_MAX: u64 = 1 << 53;
        let magnitude = match self.form {
            Form::NotANumber => f64::NAN,
            Form::Infinity => f64::INFINITY,
            Form::Integer | Form::Decimal => {
                if !self.exact || self.mantissa > MANTISSA_MAX {
                    return None;
                }
                let power = *POWERS.get(self.exponent.unsigned_abs() as usize)?;
                let mantissa = self.mantissa as f64;
                if self.exponent < 0 { mantissa / power } else { mantissa * power }
            }
        };
        Some(if self.negative { -magnitude } else { magnitude })
    }
}

/// Appends the digits from `at` on to `mantissa`, which wraps, and returns the offset behind them.
/// Eight bytes are looked at in one step, however many of them are digits.
#[inline]
fn read_digits(bytes: &[u8], mut at: usize, mantissa: &mut u64) -> usize {
    const STEP: u32 = 8;
    const ZEROS: u64 = 0x3030_3030_3030_3030;
    const TO_HIGH_BIT: u64 = 0x7676_7676_7676_7676;
    const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
    const POWERS: [u64; 9] =
        [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let digits = u64::from_le_bytes(*eight) ^ ZEROS;
        let others = (digits.wrapping_add(TO_HIGH_BIT) | digits) & HIGH_BITS;
        let count = others.trailing_zeros() / STEP;
        if count == 0 {
            return at;
        }
        // The first digit is in the lowest byte; zeros go below it where there are fewer than eight.
        let value = value_of_eight(digits << ((STEP - count) * u8::BITS));
        *mantissa = mantissa.wrapping_mul(POWERS[count as usize]).wrapping_add(value);
        at += count as usize;
        if count < STEP {
            return at;
        }
    }
    while let Some(digit @ b'0'..=b'9') = bytes.get(at).copied() {
        *mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        at += 1;
    }
    at
}

/// The number of which each byte is a digit, the lowest byte the first: pairs, fours, then all.
#[inline]
fn value_of_eight(digits: u64) -> u64 {
    let pairs = (digits.wrapping_mul(10).wrapping_add(digits >> 8)) & 0x00FF_00FF_00FF_00FF;
    let fours = (pairs.wrapping_mul(100).wrapping_add(pairs >> 16)) & 0x0000_FFFF_0000_FFFF;
    fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xFFFF_FFFF
}
