use std::fmt;

use blake3::Hasher;

use crate::inference::{Admitted, Parameter, Parameters, Shape, Signature};

/// What answers are kept under: 128 bits over the model, the version, what was asked for and every byte
/// of the inputs. The hash is a cryptographic one, because clients choose the inputs and the answer to
/// one must never be given for another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey(u128);

impl CacheKey {
    /// Which of `count` owners has the key.
    pub fn owner(self, count: usize) -> usize {
        // Lossless: the remainder is below `count`.
        (self.0 % count.max(1) as u128) as usize
    }

    #[cfg(test)]
    pub(super) const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What answers belong to: a version of a model as it was loaded. Another load that may answer
/// differently has another one.
#[derive(Clone)]
pub struct ModelIdentity(Hasher);

impl fmt::Debug for ModelIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelIdentity").field(&self.0.finalize().to_hex().as_str()).finish()
    }
}

impl ModelIdentity {
    /// That of a version; `distinction` is what tells this load of it from others.
    pub fn new(namespace: &str, model: &str, version: i64, distinction: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        for part in [namespace.as_bytes(), model.as_bytes(), distinction] {
            put(&mut hasher, part);
        }
        hasher.update(&version.to_le_bytes());
        Self(hasher)
    }
}

/// Makes a [`CacheKey`] of a request, a piece at a time, because large inputs take a while.
pub struct KeyHasher(Hasher);

impl KeyHasher {
    /// Begins with what is not input: the model, the outputs that are wanted, and the parameters, which
    /// a model may heed.
    pub fn new(identity: &ModelIdentity, admitted: &Admitted, parameters: &Parameters) -> Self {
        let mut hasher = identity.0.clone();
        number(&mut hasher, admitted.outputs.len());
        for &output in &admitted.outputs {
            hasher.update(&output.to_le_bytes());
        }
        number(&mut hasher, parameters.len());
        // Their order means nothing.
        let mut sorted: Vec<(&str, &Parameter)> = parameters.iter().collect();
        sorted.sort_by_key(|(name, _)| *name);
        for (name, value) in sorted {
            put(&mut hasher, name.as_bytes());
            parameter(&mut hasher, value);
        }
        Self(hasher)
    }

    /// Begins an input: `index` is its place in the signature, and all of its bytes follow.
    pub fn input(&mut self, index: usize, shape: &Shape, byte_size: usize) {
        number(&mut self.0, index);
        number(&mut self.0, shape.len());
        for dim in shape.iter() {
            self.0.update(&dim.to_le_bytes());
        }
        number(&mut self.0, byte_size);
    }

    /// Takes in the next bytes of the input.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The key.
    pub fn finish(self) -> CacheKey {
        let hash = self.0.finalize();
        let half = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        CacheKey(u128::from_le_bytes(half))
    }

    /// The key of a request in one go.
    pub fn key(
        identity: &ModelIdentity,
        signature: &Signature,
        admitted: &Admitted,
        parameters: &Parameters,
    ) -> CacheKey {
        let mut hasher = Self::new(identity, admitted, parameters);
        for (index, input) in admitted.inputs.iter().enumerate().take(signature.inputs.len()) {
            let Some(input) = input else { continue };
            hasher.input(index, &input.shape, input.data.len());
            input.data.pieces().iter().for_each(|piece| hasher.bytes(piece));
        }
        hasher.finish()
    }
}

/// Bytes behind their number, so that no two lists of them read the same.
fn put(hasher: &mut Hasher, bytes: &[u8]) {
    number(hasher, bytes.len());
    hasher.update(bytes);
}

fn number(hasher: &mut Hasher, number: usize) {
    hasher.update(&(number as u64).to_le_bytes());
}

fn parameter(hasher: &mut Hasher, value: &Parameter) {
    let (kind, bits) = match value {
        Parameter::Bool(value) => (0_u8, u64::from(*value)),
        Parameter::Int(value) => (1, value.cast_unsigned()),
        Parameter::Uint(value) => (2, *value),
        Parameter::Double(value) => (3, value.to_bits()),
        Parameter::String(text) => {
            hasher.update(&[4]);
            return put(hasher, text.as_bytes());
        }
    };
    hasher.update(&[kind]);
    hasher.update(&bits.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::Bytes;

    use super::*;
    use crate::inference::{AdmittedInput, DataType, Rope, TensorSpec};

    fn signature() -> Signature {
        let spec = |name| TensorSpec::new(name, DataType::Uint8, Shape::from([-1]));
        Signature {
            model: "m".into(),
            max_batch_size: 8,
            inputs: vec![spec("A"), spec("B")],
            outputs: Vec::new(),
        }
    }

    type Given<'a> = Option<(&'a [i64], &'a [&'a [u8]])>;

    fn admitted(inputs: [Given<'_>; 2], outputs: &[u16]) -> Admitted {
        let inputs = inputs.map(|given| {
            given.map(|(shape, pieces)| {
                let mut data = Rope::default();
                pieces.iter().for_each(|piece| data.push(Bytes::copy_from_slice(piece)));
                AdmittedInput { shape: shape.into(), data }
            })
        });
        Admitted {
            batch_size: 1,
            inputs: inputs.into_iter().collect(),
            outputs: outputs.iter().copied().collect(),
            classes: Default::default(),
        }
    }

    fn key(identity: &ModelIdentity, admitted: &Admitted, named: &[(&str, Parameter)]) -> CacheKey {
        let mut parameters = Parameters::default();
        for (name, value) in named {
            parameters.insert(*name, value.clone());
        }
        KeyHasher::key(identity, &signature(), admitted, &parameters)
    }

    #[test]
    fn whatever_can_change_the_answer_changes_the_key() {
        let m = ModelIdentity::new("", "m", 1, b"");
        let base: [Given<'_>; 2] = [Some((&[1, 4], &[b"abcd"])), None];
        let all = [
            key(&m, &admitted(base, &[0]), &[]),
            key(&ModelIdentity::new("n", "m", 1, b""), &admitted(base, &[0]), &[]),
            key(&ModelIdentity::new("", "n", 1, b""), &admitted(base, &[0]), &[]),
            key(&ModelIdentity::new("", "m", 2, b""), &admitted(base, &[0]), &[]),
            key(&ModelIdentity::new("", "m", 1, b"x"), &admitted(base, &[0]), &[]),
            key(&m, &admitted(base, &[1]), &[]),
            key(&m, &admitted(base, &[0, 1]), &[]),
            // The same bytes of another shape, in another input, parted otherwise.
            key(&m, &admitted([Some((&[4, 1], &[b"abcd"])), None], &[0]), &[]),
            key(&m, &admitted([None, Some((&[1, 4], &[b"abcd"]))], &[0]), &[]),
            key(&m, &admitted([Some((&[1, 2], &[b"ab"])), Some((&[1, 2], &[b"cd"]))], &[0]), &[]),
            key(&m, &admitted([Some((&[1, 4], &[b"abce"])), None], &[0]), &[]),
            key(&m, &admitted(base, &[0]), &[("a", Parameter::Int(1))]),
            key(&m, &admitted(base, &[0]), &[("a", Parameter::Uint(1))]),
            key(&m, &admitted(base, &[0]), &[("a", Parameter::String("1".into()))]),
        ];
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn what_cannot_change_the_answer_does_not_change_the_key() {
        let m = ModelIdentity::new("", "m", 1, b"");
        let whole = admitted([Some((&[1, 4], &[b"abcd"])), None], &[0]);
        let in_pieces = admitted([Some((&[1, 4], &[b"a", b"bcd"])), None], &[0]);
        assert_eq!(key(&m, &whole, &[]), key(&m, &in_pieces, &[]));
        let (a, b) = (("a", Parameter::Bool(true)), ("b", Parameter::Double(0.5)));
        let ways = [[a.clone(), b.clone()], [b, a]].map(|order| key(&m, &whole, &order));
        assert_eq!(ways[0], ways[1]);
    }

    #[test]
    fn keys_are_spread_over_their_owners() {
        let mut counts = [0; 4];
        for byte in 0..=255_u8 {
            let m = ModelIdentity::new("", "m", 1, &[byte]);
            counts[key(&m, &admitted([None, None], &[]), &[]).owner(4)] += 1;
        }
        assert!(counts.iter().all(|count| (32..=96).contains(count)), "{counts:?}");
    }
}
