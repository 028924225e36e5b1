//! Non-maximum suppression of overlapping boxes; `kernels/nms.cu`.

use super::Grid;

/// The most candidates of an image that the kernel takes.
pub const CANDIDATES_MAX: u32 = super::top_k::K_MAX;

/// How `nms` is launched.
pub fn grid(images: u32, candidates: u32) -> Grid {
    let grid = Grid::a_block_a_row(images, candidates);
    Grid { shared_bytes: candidates.max(1), ..grid }
}

/// How `nms_results` is launched.
pub fn results_grid(images: u32, kept_max: u32) -> Grid {
    Grid::over(u64::from(images) * u64::from(kept_max))
}

/// Which boxes are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Boxes may overlap by this much: the area that both cover over the area that either covers.
    pub overlap_max: f32,
    /// Candidates of a lower score are left out.
    pub score_min: f32,
    /// No more are kept.
    pub kept_max: usize,
    /// Boxes are `[centre x, centre y, width, height]` instead of `[left, top, right, bottom]`.
    pub centred: bool,
    /// Boxes suppress those of other classes too.
    pub any_class: bool,
}

/// The candidates of one image that are kept, in their order, at most `kept_max`. Candidate `i` is
/// entry `candidates[i]` of `scores`, which is `[boxes, classes]`; the candidates come in descending
/// order of their scores. Those that name no entry are left out.
pub fn nms(
    boxes: &[[f32; 4]],
    scores: &[f32],
    classes: usize,
    candidates: &[i64],
    rule: &Rule,
) -> Vec<i64> {
    let classes = classes.max(1);
    let mut alive: Vec<Candidate> = candidates
        .iter()
        .filter_map(|&entry| {
            let at = usize::try_from(entry).ok()?;
            let is_scored = *scores.get(at)? >= rule.score_min;
            let corners = corners(*boxes.get(at / classes)?, rule.centred);
            let class = if rule.any_class { 0 } else { at % classes };
            is_scored.then_some(Candidate { entry, class, corners, area: area(corners) })
        })
        .collect();
    let mut kept = Vec::new();
    let mut next = 0;
    while kept.len() < rule.kept_max
        && let Some(&best) = alive.get(next)
    {
        kept.push(best.entry);
        next += 1;
        // What stays moves up, in order, so that later rounds look at fewer.
        let mut end = next;
        for at in next..alive.len() {
            let other = alive[at];
            if other.class != best.class || !best.overlaps(&other, rule.overlap_max) {
                alive[end] = other;
                end += 1;
            }
        }
        alive.truncate(end);
    }
    kept
}

/// The best boxes of a batch of images, as `nms_results` writes them.
pub struct Best<'a> {
    /// Their boxes.
    pub boxes: &'a mut [[f32; 4]],
    /// Their scores.
    pub scores: &'a mut [f32],
    /// Their classes.
    pub classes: &'a mut [i64],
}

/// Writes what the `kept` entries of images of `count` boxes are, `kept_max` of each image: a negative
/// entry is none, and has zeros and class -1.
pub fn results(
    boxes: &[[f32; 4]],
    scores: &[f32],
    kept: &[i64],
    [count, classes, kept_max]: [usize; 3],
    best: Best<'_>,
) {
    let best = best.boxes.iter_mut().zip(best.scores).zip(best.classes);
    for (at, (&entry, ((to_box, score), class))) in kept.iter().zip(best).enumerate() {
        let image = at / kept_max.max(1);
        let found = usize::try_from(entry).ok().and_then(|entry| {
            let of_box = boxes.get(image * count + entry.checked_div(classes)?)?;
            let score = scores.get(image * count * classes + entry)?;
            Some((*of_box, *score, (entry % classes) as i64))
        });
        (*to_box, *score, *class) = found.unwrap_or(([0.0; 4], 0.0, -1));
    }
}

#[derive(Clone, Copy)]
struct Candidate {
    entry: i64,
    class: usize,
    corners: [f32; 4],
    area: f32,
}

impl Candidate {
    fn overlaps(&self, other: &Self, overlap_max: f32) -> bool {
        let [a, b] = [self.corners, other.corners];
        let width = a[2].min(b[2]) - a[0].max(b[0]);
        let height = a[3].min(b[3]) - a[1].max(b[1]);
        let both = width.max(0.0) * height.max(0.0);
        both > overlap_max * (self.area + other.area - both)
    }
}

fn corners([x, y, z, w]: [f32; 4], centred: bool) -> [f32; 4] {
    if !centred {
        return [x, y, z, w];
    }
    [x - z * 0.5, y - w * 0.5, x + z * 0.5, y + w * 0.5]
}

fn area([left, top, right, bottom]: [f32; 4]) -> f32 {
    (right - left).max(0.0) * (bottom - top).max(0.0)
}
