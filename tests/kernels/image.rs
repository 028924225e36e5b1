use half::{bf16, f16};
use nereid::device::kernels::image::{
    Element, Filter, Picture, Scratch, Target, Window, grid, picture,
};

use super::{
    Machine, check,
    machine::{Argument, read, write},
};

/// The weights of all pixels of `source` for position `at` of `canvas`, by the definition.
fn weights(at: i32, source: i32, canvas: i32, filter: Filter) -> Vec<f64> {
    let ratio = f64::from(source) / f64::from(canvas);
    let centre = (f64::from(at) + 0.5) * ratio;
    let reach = if filter == Filter::Antialias { ratio.max(1.0) } else { 1.0 };
    let weight = |i: i32| match filter {
        Filter::Nearest => f64::from(i == (2 * at + 1) * source / (2 * canvas)),
        _ => (1.0 - (f64::from(i) + 0.5 - centre).abs() / reach).max(0.0),
    };
    let all: Vec<f64> = (0..source).map(weight).collect();
    let total: f64 = all.iter().sum();
    all.into_iter().map(|weight| weight / total).collect()
}

fn reference(pixels: &[u8], picture: &Picture, target: &Target, filter: Filter) -> Vec<f64> {
    let window = picture.window;
    let channels = target.channels;
    let mut output = vec![0.0; target.elements()];
    for y in 0..target.height {
        for x in 0..target.width {
            let (canvas_x, canvas_y) = (x + picture.output[0], y + picture.output[1]);
            let inside = (0..picture.canvas[0]).contains(&canvas_x)
                && (0..picture.canvas[1]).contains(&canvas_y);
            let across = weights(canvas_x, window.width, picture.canvas[0], filter);
            let down = weights(canvas_y, window.height, picture.canvas[1], filter);
            for c in 0..channels {
                let mut value = f64::from(target.fill[c as usize]);
                if inside {
                    value = 0.0;
                    for (j, down) in (0..).zip(&down) {
                        for (i, across) in (0..).zip(&across) {
                            let at = (window.y + j) * picture.stride
                                + (window.x + i) * channels
                                + target.order[c as usize];
                            value += down * across * f64::from(pixels[at as usize]);
                        }
                    }
                }
                let (mean, scale) = (target.mean[c as usize], target.scale[c as usize]);
                let pixel = y * target.width + x;
                let at = match target.planar {
                    0 => pixel * channels + c,
                    _ => c * target.width * target.height + pixel,
                };
                output[at as usize] = (value - f64::from(mean)) * f64::from(scale);
            }
        }
    }
    output
}

/// A batch of pictures and what becomes of them.
struct Case {
    pixels: Vec<Vec<u8>>,
    pictures: Vec<Picture>,
    target: Target,
    filter: Filter,
}

impl Case {
    fn of(random: &mut fastrand::Rng, scale: f32) -> Self {
        let filter = [Filter::Nearest, Filter::Bilinear, Filter::Antialias][random.usize(..3)];
        let channels = random.i32(1..=4);
        let mut order = [0, 1, 2, 3];
        random.shuffle(&mut order[..channels as usize]);
        let mut levels = || [(); 4].map(|()| random.f32() * 255.0);
        let (mean, fill) = (levels(), levels());
        let scales = [(); 4].map(|()| scale * (0.5 + random.f32()));
        let target = Target {
            width: random.i32(1..40),
            height: random.i32(1..30),
            channels,
            order,
            mean,
            scale: scales,
            fill,
            filter: filter as i32,
            planar: random.i32(..2).abs() % 2,
        };
        let count = random.usize(1..4);
        let (mut pixels, mut pictures) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let [width, height] = [random.i32(1..70), random.i32(1..70)];
            let stride = width * channels + random.i32(0..5);
            let [x, y] = [random.i32(..width.max(1)).abs(), random.i32(..height).abs()];
            let (x, y) = (x % width, y % height);
            pixels.push((0..stride * height).map(|_| random.u8(..)).collect());
            pictures.push(Picture {
                stride,
                window: Window {
                    x,
                    y,
                    width: random.i32(1..=width - x),
                    height: random.i32(1..=height - y),
                },
                canvas: [random.i32(1..60), random.i32(1..60)],
                output: [random.i32(-9..9), random.i32(-9..9)],
            });
        }
        Self { pixels, pictures, target, filter }
    }

    fn expected(&self) -> Vec<f64> {
        let each = self.pixels.iter().zip(&self.pictures);
        each.flat_map(|(pixels, picture)| reference(pixels, picture, &self.target, self.filter))
            .collect()
    }

    /// The twin's output, then each machine's.
    fn outputs<T: Element + bytemuck::Pod>(&self, machines: &[Box<dyn Machine>]) -> Vec<Vec<T>> {
        let elements = self.target.elements();
        let mut scratch = Scratch::default();
        let mut twin = vec![T::zeroed(); elements * self.pictures.len()];
        let each = self.pixels.iter().zip(&self.pictures).zip(twin.chunks_mut(elements));
        for ((pixels, geometry), output) in each {
            picture(pixels, geometry, &self.target, &mut scratch, output).unwrap();
        }
        let mut all = vec![twin];
        for machine in machines {
            let mut output = vec![T::zeroed(); elements * self.pictures.len()];
            let arguments = vec![
                Argument::ReadTable(self.pixels.iter().map(Vec::as_slice).collect()),
                read(&self.pictures),
                read(std::slice::from_ref(&self.target)),
                write(&mut output),
            ];
            let grid = grid(&self.target, self.pictures.len() as u32);
            machine.launch(&format!("image_{}", T::SUFFIX), &grid, arguments);
            all.push(output);
        }
        all
    }
}

/// Asserts that all are `expected`, up to `step` of each value and float32's own rounding.
fn assert_right<T: Copy>(case: &Case, all: &[Vec<T>], exact: fn(T) -> f64, step: f64) {
    let range = 255.0 * f64::from(case.target.scale.into_iter().fold(0.0, f32::max));
    let expected = case.expected();
    for output in all {
        for (&got, &expected) in output.iter().zip(&expected) {
            let slack = 1e-6 * range + step * expected.abs();
            assert!(
                (exact(got) - expected).abs() <= slack,
                "expected {expected}, got {}",
                exact(got)
            );
        }
    }
}

#[test]
fn pictures_become_tensors_in_one_pass() {
    check(0..80, |random, machines| {
        let case = Case::of(random, 0.02);
        assert_right(&case, &case.outputs::<f32>(machines), f64::from, 0.0);
        assert_right(&case, &case.outputs::<f16>(machines), f16::to_f64, 2f64.powi(-11));
        assert_right(&case, &case.outputs::<bf16>(machines), bf16::to_f64, 2f64.powi(-8));
    });
}

#[test]
fn pictures_stay_pictures() {
    check(100..140, |random, machines| {
        let mut case = Case::of(random, 1.0);
        (case.target.mean, case.target.scale) = ([0.0; 4], [1.0; 4]);
        let expected = case.expected();
        for output in case.outputs::<u8>(machines) {
            for (&got, &expected) in output.iter().zip(&expected) {
                assert!((f64::from(got) - expected).abs() <= 0.5 + 1e-3, "{expected}, {got}");
            }
        }
    });
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let mut random = fastrand::Rng::with_seed(1);
    let case = Case::of(&mut random, 1.0);
    let mut output = vec![0f32; case.target.elements()];
    let mut scratch = Scratch::default();
    let mut run = |geometry: &Picture, target: &Target, output: &mut [f32]| {
        picture(&case.pixels[0], geometry, target, &mut scratch, output).unwrap_err().to_string()
    };
    let good = case.pictures[0];
    let window = Window { width: good.stride, ..good.window };
    let wide = Picture { window, ..good };
    assert!(run(&wide, &case.target, &mut output).contains("is not inside of the picture"));
    let left = Picture { window: Window { x: -1, ..good.window }, ..good };
    assert!(run(&left, &case.target, &mut output).contains("is not inside of the picture"));
    let flat = Picture { canvas: [0, 5], ..good };
    assert!(run(&flat, &case.target, &mut output).contains("the canvas has 0 × 5 pixels"));
    let target = Target { channels: 5, ..case.target };
    assert!(run(&good, &target, &mut output).contains("unexpected channels: 5"));
    output.push(0.0);
    assert!(run(&good, &case.target, &mut output).contains("the output has"));
}
