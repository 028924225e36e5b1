use lru::LruCache;

use super::{CacheKey, CachedResponse};

/// The answers that one core keeps: those that were asked for last, in a bounded number of bytes.
pub struct ResponseCache {
    entries: LruCache<CacheKey, CachedResponse>,
    bytes: usize,
    bytes_max: usize,
}

impl ResponseCache {
    /// An empty one of at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0, bytes_max }
    }

    /// The answer under `key`, which is the last now that is forgotten.
    pub fn get(&mut self, key: CacheKey) -> Option<CachedResponse> {
        self.entries.get(&key).cloned()
    }

    /// Whether an answer of so many bytes could be kept at all.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        bytes <= self.bytes_max
    }

    /// Keeps an answer in place of an earlier one under `key`, and forgets others for it, those first
    /// that nobody asked for longest. Returns whether it is kept: one that is too large is not.
    pub fn insert(&mut self, key: CacheKey, response: CachedResponse) -> bool {
        let bytes = response.byte_size();
        if !self.has_room_for(bytes) {
            return false;
        }
        if let Some(earlier) = self.entries.pop(&key) {
            self.bytes -= earlier.byte_size();
        }
        while self.bytes + bytes > self.bytes_max {
            let Some((_, oldest)) = self.entries.pop_lru() else { break };
            self.bytes -= oldest.byte_size();
        }
        self.bytes += bytes;
        self.entries.put(key, response);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::inference::{DataType, InferOutput, Parameters, Shape};

    fn response(bytes: usize) -> CachedResponse {
        let output = InferOutput {
            name: "OUT".into(),
            datatype: DataType::Uint8,
            shape: Shape::from([bytes as i64]),
            data: vec![bytes as u8; bytes].into(),
        };
        CachedResponse::copied(&[output], &Parameters::default())
    }

    proptest! {
        /// Against a list in the order of use: the same answers, in bounded bytes.
        #[test]
        fn what_was_used_last_is_kept(
            steps in prop::collection::vec((0_u128..12, prop::option::of(0_usize..700)), 0..200),
            bytes_max in 0_usize..4000,
        ) {
            let mut cache = ResponseCache::new(bytes_max);
            // The front was used longest ago.
            let mut model: VecDeque<(u128, usize)> = VecDeque::new();
            for (key, inserted) in steps {
                let at = model.iter().position(|(known, _)| *known == key);
                match inserted {
                    None => {
                        let found = cache.get(CacheKey::from_bits(key));
                        let expected = at.and_then(|at| model.remove(at));
                        prop_assert_eq!(
                            found.map(|found| found.byte_size()),
                            expected.map(|(_, bytes)| response(bytes).byte_size())
                        );
                        model.extend(expected);
                    }
                    Some(bytes) => {
                        let new = response(bytes);
                        let size = |(_, bytes): &(u128, usize)| response(*bytes).byte_size();
                        let fits = new.byte_size() <= bytes_max;
                        prop_assert_eq!(cache.insert(CacheKey::from_bits(key), new.clone()), fits);
                        if fits {
                            at.map(|at| model.remove(at));
                            while model.iter().map(size).sum::<usize>() + new.byte_size() > bytes_max {
                                model.pop_front();
                            }
                            model.push_back((key, bytes));
                        }
                    }
                }
                let held: usize = cache.entries.iter().map(|(_, held)| held.byte_size()).sum();
                prop_assert_eq!(cache.bytes, held);
                prop_assert!(cache.bytes <= bytes_max);
                prop_assert_eq!(cache.entries.len(), model.len());
            }
        }
    }
}
