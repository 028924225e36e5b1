use slab::Slab;

/// Lines of values in one memory: who comes takes the place that was left last. So many lines of which few
/// have anything in them take no more, and find no colder memory, than these few.
#[cfg_attr(test, derive(Clone))]
pub struct Lines<T> {
    places: Slab<Place<T>>,
}

#[cfg_attr(test, derive(Clone))]
struct Place<T> {
    value: T,
    /// Who is behind it, unless it is the last of its line.
    next: usize,
}

/// One of the [`Lines`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    /// The places of its first and its last.
    ends: Option<(usize, usize)>,
}

impl Line {
    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.ends.is_none()
    }
}

impl<T> Lines<T> {
    /// With nothing in any line.
    pub fn new() -> Self {
        Self { places: Slab::new() }
    }

    /// The number of values in all lines.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Puts a value behind the others.
    pub fn push_back(&mut self, line: &mut Line, value: T) {
        let place = self.places.insert(Place { value, next: 0 });
        let first = line.ends.map_or(place, |(first, last)| {
            if let Some(before) = self.places.get_mut(last) {
                before.next = place;
            }
            first
        });
        line.ends = Some((first, place));
    }

    /// Puts a value in front of the others.
    pub fn push_front(&mut self, line: &mut Line, value: T) {
        let next = line.ends.map_or(0, |(first, _)| first);
        let place = self.places.insert(Place { value, next });
        line.ends = Some((place, line.ends.map_or(place, |(_, last)| last)));
    }

    /// The first value of a line.
    pub fn front(&self, line: Line) -> Option<&T> {
        let (first, _) = line.ends?;
        self.places.get(first).map(|place| &place.value)
    }

    /// The values of a line in their order.
    #[cfg(test)]
    pub fn values(&self, line: Line) -> impl Iterator<Item = &T> {
        let mut left = line.ends;
        std::iter::from_fn(move || {
            let (at, last) = left?;
            let place = self.places.get(at)?;
            left = (at != last).then_some((place.next, last));
            Some(&place.value)
        })
    }

    /// The values of all lines.
    #[cfg(test)]
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().map(|(_, place)| &mut place.value)
    }

    /// Takes the first value of a line out.
    pub fn pop_front(&mut self, line: &mut Line) -> Option<T> {
        let (first, last) = line.ends?;
        let Place { value, next } = self.places.try_remove(first)?;
        line.ends = (first != last).then_some((next, last));
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_is_a_queue_and_all_share_what_is_left(
            events in prop::collection::vec((0..3_usize, 0..5_u8), 0..200),
        ) {
            let (mut lines, mut line) = (Lines::new(), [Line::default(); 3]);
            let mut expected: [VecDeque<usize>; 3] = Default::default();
            let mut most = 0;
            for (value, (which, event)) in events.into_iter().enumerate() {
                match event {
                    0 | 1 => {
                        lines.push_back(&mut line[which], value);
                        expected[which].push_back(value);
                    }
                    2 => {
                        lines.push_front(&mut line[which], value);
                        expected[which].push_front(value);
                    }
                    _ => {
                        prop_assert_eq!(lines.pop_front(&mut line[which]), expected[which].pop_front());
                    }
                }
                prop_assert_eq!(lines.front(line[which]), expected[which].front());
                prop_assert_eq!(line[which].is_empty(), expected[which].is_empty());
                prop_assert!(lines.values(line[which]).eq(&expected[which]));
                let all = expected.iter().map(VecDeque::len).sum::<usize>();
                most = most.max(all);
                prop_assert_eq!(lines.len(), all);
            }
            prop_assert!(lines.places.capacity() <= (2 * most).max(4));
        }
    }
}
