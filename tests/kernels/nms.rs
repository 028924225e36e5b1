use nereid::device::kernels::{
    nms::{self, Rule},
    top_k,
};

use super::{
    check,
    machine::{read, value, write},
};

/// Corners of a box in float64.
fn corners(given: [f32; 4], centred: bool) -> [f64; 4] {
    let [x, y, z, w] = given.map(f64::from);
    if centred { [x - z / 2.0, y - w / 2.0, x + z / 2.0, y + w / 2.0] } else { [x, y, z, w] }
}

fn overlap(a: [f64; 4], b: [f64; 4]) -> f64 {
    let area = |[left, top, right, bottom]: [f64; 4]| {
        if right > left && bottom > top { (right - left) * (bottom - top) } else { 0.0 }
    };
    let both = [a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])];
    let either = area(a) + area(b) - area(both);
    if either > 0.0 { area(both) / either } else { 0.0 }
}

/// By the definition: a candidate is kept unless one that is kept overlaps it too much.
fn reference(
    boxes: &[[f32; 4]],
    scores: &[f32],
    classes: usize,
    order: &[i64],
    rule: &Rule,
) -> Vec<i64> {
    let mut kept: Vec<usize> = Vec::new();
    for &entry in order {
        let entry = entry as usize;
        let corners = |entry: usize| corners(boxes[entry / classes], rule.centred);
        let suppressed = kept.iter().any(|&other| {
            (rule.any_class || other % classes == entry % classes)
                && overlap(corners(entry), corners(other)) > f64::from(rule.overlap_max)
        });
        if scores[entry] >= rule.score_min && !suppressed && kept.len() < rule.kept_max {
            kept.push(entry);
        }
    }
    kept.into_iter().map(|entry| entry as i64).collect()
}

#[test]
fn the_best_of_boxes_that_overlap_is_kept() {
    check(0..60, |random, machines| {
        let images = random.usize(1..4);
        let (count, classes) = (random.usize(1..120), random.usize(1..4));
        // Whole numbers and simple thresholds: areas are exact, also in float32.
        let boxes: Vec<[f32; 4]> = (0..images * count)
            .map(|_| {
                let [x, y, width, height] =
                    [40, 40, 20, 20].map(|limit| f32::from(random.u8(..limit)));
                [x, y, x + 2.0 * width, y + 2.0 * height]
            })
            .collect();
        let scores: Vec<f32> =
            (0..images * count * classes).map(|_| f32::from(random.u8(..)) / 256.0).collect();
        let rule = Rule {
            overlap_max: [0.0, 0.25, 0.5, 0.75, 1.0][random.usize(..5)],
            score_min: [0.0, 0.25, 0.9][random.usize(..3)],
            kept_max: random.usize(1..40),
            centred: random.bool(),
            any_class: random.bool(),
        };
        let candidates = random.usize(1..=count * classes);
        let mut order = vec![0i64; images * candidates];
        let mut of_order = vec![0f32; images * candidates];
        top_k::top_k(&scores, count * classes, candidates, &mut of_order, &mut order);

        let mut expected = vec![-1i64; images * rule.kept_max];
        let mut expected_counts = vec![0i32; images];
        for image in 0..images {
            let boxes = &boxes[image * count..][..count];
            let scores = &scores[image * count * classes..][..count * classes];
            let order = &order[image * candidates..][..candidates];
            let kept = reference(boxes, scores, classes, order, &rule);
            assert_eq!(nms::nms(boxes, scores, classes, order, &rule), kept);
            expected[image * rule.kept_max..][..kept.len()].copy_from_slice(&kept);
            expected_counts[image] = kept.len() as i32;
        }
        for machine in machines {
            let mut kept = vec![0i64; expected.len()];
            let mut counts = vec![-1i32; images];
            let arguments = vec![
                read(&boxes),
                read(&scores),
                read(&order),
                value(count as u32),
                value(classes as u32),
                value(candidates as u32),
                value(rule.overlap_max),
                value(rule.score_min),
                value(rule.kept_max as u32),
                value(u32::from(rule.centred)),
                value(u32::from(rule.any_class)),
                write(&mut kept),
                write(&mut counts),
            ];
            machine.launch("nms", &nms::grid(images as u32, candidates as u32), arguments);
            assert_eq!((kept, counts), (expected.clone(), expected_counts.clone()));
            let mut best = vec![[7f32; 4]; expected.len()];
            let (mut of_best, mut of_classes) = (vec![7f32; best.len()], vec![7i64; best.len()]);
            let arguments = vec![
                read(&boxes),
                read(&scores),
                read(&expected),
                value(images as u32),
                value(count as u32),
                value(classes as u32),
                value(rule.kept_max as u32),
                write(&mut best),
                write(&mut of_best),
                write(&mut of_classes),
            ];
            let grid = nms::results_grid(images as u32, rule.kept_max as u32);
            machine.launch("nms_results", &grid, arguments);
            for (at, &entry) in expected.iter().enumerate() {
                let (image, entry) = (at / rule.kept_max, usize::try_from(entry).ok());
                let of_box = |entry: usize| boxes[image * count + entry / classes];
                assert_eq!(best[at], entry.map_or([0.0; 4], of_box));
                let score = |entry: usize| scores[image * count * classes + entry];
                assert_eq!(of_best[at], entry.map_or(0.0, score));
                assert_eq!(of_classes[at], entry.map_or(-1, |entry| (entry % classes) as i64));
            }
        }
    });
}
