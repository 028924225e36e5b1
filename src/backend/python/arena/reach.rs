//! How much of a half keeps its pages.

/// So much of a half keeps its pages, whether they are used or not.
pub const KEPT_BYTES: usize = 16 << 20;

/// How far a half is used. The lowest range that is free is taken first, so this is how much of it is
/// needed.
pub struct Reach {
    /// The end of the farthest range since the half was trimmed last.
    now: usize,
    /// The same for the time before that.
    before: usize,
    kept: usize,
    /// Up to where they always are.
    least: usize,
}

impl Reach {
    /// That of a half that begins at `start` and that nobody has used.
    pub fn of_half(start: usize) -> Self {
        let least = start + KEPT_BYTES;
        Self { now: 0, before: 0, kept: least, least }
    }

    /// Up to where pages that are free are kept.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Notes a range that is used, by its end.
    pub fn note(&mut self, end: usize) {
        self.now = self.now.max(end);
        self.kept = self.kept.max(end);
    }

    /// Begins a new while. Tells from where on pages are no longer kept, if some were kept till now.
    pub fn trim(&mut self) -> Option<usize> {
        let kept = self.now.max(self.before).max(self.least);
        self.before = std::mem::take(&mut self.now);
        (kept < std::mem::replace(&mut self.kept, kept)).then_some(kept)
    }
}
