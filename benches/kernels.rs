//! The kernels' twins beside the loops that one would write first.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use nereid::device::kernels::{
    cast::Narrow,
    image::{self, Filter, Picture, Scratch, Target, Window},
    nms, softmax, top_k,
};

/// Numbers of no pattern, the same in every run.
fn floats(count: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..count).map(|_| random.f32() * 20.0 - 10.0).collect()
}

fn casts(criterion: &mut Criterion) {
    let from = floats(1 << 20);
    let mut group = criterion.benchmark_group("narrow 2^20 float32");
    group.throughput(Throughput::Elements(from.len() as u64));
    let mut to = vec![0u8; from.len()];
    group.bench_function("u8", |bencher| {
        bencher.iter(|| u8::narrow(black_box(&from), &mut to, 0.1, 128.0));
    });
    group.bench_function("u8, naive", |bencher| {
        bencher.iter(|| {
            for (to, from) in to.iter_mut().zip(black_box(&from)) {
                *to = ((from / 0.1).round_ties_even() + 128.0).clamp(0.0, 255.0) as u8;
            }
        });
    });
    let mut to = vec![f16::ZERO; from.len()];
    group.bench_function("f16", |bencher| {
        bencher.iter(|| f16::narrow(black_box(&from), &mut to, 1.0, 0.0));
    });
    group.bench_function("f16, naive", |bencher| {
        bencher.iter(|| {
            for (to, from) in to.iter_mut().zip(black_box(&from)) {
                *to = f16::from_f32(*from);
            }
        });
    });
}

fn rows(criterion: &mut Criterion) {
    const COLUMNS: usize = 1000;
    let from = floats(64 * COLUMNS);
    let mut to = vec![0.0; from.len()];
    let mut group = criterion.benchmark_group("64 rows of 1000");
    group.throughput(Throughput::Elements(from.len() as u64));
    group.bench_function("softmax", |bencher| {
        bencher.iter(|| softmax::softmax(black_box(&from), &mut to, COLUMNS));
    });
    group.bench_function("softmax, naive", |bencher| {
        bencher.iter(|| {
            for (from, to) in black_box(&from).chunks(COLUMNS).zip(to.chunks_mut(COLUMNS)) {
                let largest = from.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = from.iter().map(|value| (value - largest).exp()).sum();
                for (to, from) in to.iter_mut().zip(from) {
                    *to = (from - largest).exp() / sum;
                }
            }
        });
    });
    let (mut values, mut places) = (vec![0.0; 64 * 5], vec![0; 64 * 5]);
    group.bench_function("top 5", |bencher| {
        bencher.iter(|| top_k::top_k(black_box(&from), COLUMNS, 5, &mut values, &mut places));
    });
    group.bench_function("top 5, naive", |bencher| {
        bencher.iter(|| {
            for (row, places) in black_box(&from).chunks(COLUMNS).zip(places.chunks_mut(5)) {
                let mut order: Vec<usize> = (0..COLUMNS).collect();
                order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
                for (place, at) in places.iter_mut().zip(order) {
                    *place = at as i64;
                }
            }
        });
    });
    let mut firsts = vec![0; 64];
    group.bench_function("argmax", |bencher| {
        bencher.iter(|| top_k::argmax(black_box(&from), COLUMNS, &mut firsts));
    });
    group.bench_function("argmax, naive", |bencher| {
        bencher.iter(|| {
            for (row, first) in black_box(&from).chunks(COLUMNS).zip(&mut firsts) {
                let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                *first = best.map_or(0, |(at, _)| at as i64);
            }
        });
    });
}

/// A photo of 640 × 480 into what an ImageNet model takes.
fn pictures(criterion: &mut Criterion) {
    const WIDTH: usize = 640;
    const HEIGHT: usize = 480;
    const SIDE: usize = 224;
    let mut random = fastrand::Rng::with_seed(2);
    let pixels: Vec<u8> = (0..WIDTH * HEIGHT * 3).map(|_| random.u8(..)).collect();
    let picture = Picture {
        stride: WIDTH as i32 * 3,
        window: Window { x: 0, y: 0, width: WIDTH as i32, height: HEIGHT as i32 },
        canvas: [SIDE as i32; 2],
        output: [0, 0],
    };
    let mut target = Target {
        width: SIDE as i32,
        height: SIDE as i32,
        channels: 3,
        order: [0, 1, 2, 0],
        mean: [127.0; 4],
        scale: [1.0 / 128.0; 4],
        fill: [0.0; 4],
        filter: Filter::Bilinear as i32,
        planar: 1,
    };
    let mut output = vec![0f32; SIDE * SIDE * 3];
    let mut scratch = Scratch::default();
    let mut group = criterion.benchmark_group("640 x 480 to 3 x 224 x 224");
    for filter in [Filter::Nearest, Filter::Bilinear, Filter::Antialias] {
        target.filter = filter as i32;
        group.bench_function(format!("{filter:?}"), |bencher| {
            bencher.iter(|| {
                image::picture(black_box(&pixels), &picture, &target, &mut scratch, &mut output)
                    .expect("sizes that fit");
            });
        });
    }
    group.bench_function("Bilinear, naive", |bencher| {
        let position = |at: usize, source: usize| {
            let place = ((at as f32 + 0.5) * source as f32 / SIDE as f32 - 0.5).max(0.0);
            let first = place as usize;
            (first, (first + 1).min(source - 1), place - first as f32)
        };
        bencher.iter(|| {
            let pixels = black_box(&pixels);
            for y in 0..SIDE {
                let (top, bottom, down) = position(y, HEIGHT);
                for x in 0..SIDE {
                    let (left, right, across) = position(x, WIDTH);
                    for c in 0..3 {
                        let at = |x: usize, y: usize| f32::from(pixels[(y * WIDTH + x) * 3 + c]);
                        let above = at(left, top) * (1.0 - across) + at(right, top) * across;
                        let below = at(left, bottom) * (1.0 - across) + at(right, bottom) * across;
                        let value = above * (1.0 - down) + below * down;
                        output[(c * SIDE + y) * SIDE + x] = (value - 127.0) / 128.0;
                    }
                }
            }
        });
    });
}

fn boxes(criterion: &mut Criterion) {
    let mut random = fastrand::Rng::with_seed(3);
    let boxes: Vec<[f32; 4]> = (0..1000)
        .map(|_| {
            let [x, y] = [(); 2].map(|()| random.f32() * 600.0);
            [x, y, x + 10.0 + random.f32() * 90.0, y + 10.0 + random.f32() * 90.0]
        })
        .collect();
    let scores: Vec<f32> = boxes.iter().map(|_| random.f32()).collect();
    let (mut values, mut order) = (vec![0.0; 1000], vec![0; 1000]);
    top_k::top_k(&scores, 1000, 1000, &mut values, &mut order);
    let rule = nms::Rule {
        overlap_max: 0.5,
        score_min: 0.0,
        kept_max: 300,
        centred: false,
        any_class: true,
    };
    criterion.bench_function("nms of 1000 boxes", |bencher| {
        bencher.iter(|| nms::nms(black_box(&boxes), &scores, 1, &order, &rule));
    });
}

criterion_group!(benches, casts, rows, pictures, boxes);
criterion_main!(benches);
