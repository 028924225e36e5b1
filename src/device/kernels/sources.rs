//! The kernels as devices take them: the name in the image, and the twin behind it.

use std::sync::Arc;

use bytemuck::{Pod, try_cast_slice, try_cast_slice_mut};
use bytes::Bytes;
use half::{bf16, f16};

use super::{
    IMAGE,
    cast::Narrow,
    gather,
    image::{self, Element, Picture, Scratch, Target},
    nms::{self, Best, Rule},
    pad, softmax, take, top_k,
};
use crate::device::{HostArgument, KernelSource, Scalar, Twin};

type Arguments<'a, 'b> = &'a mut [HostArgument<'b>];

/// A kernel of `kernels/*.cu` by its name; `None` if there is none of that name. Its parameters, in
/// order, are those in its source.
pub fn source(name: &str) -> Option<KernelSource> {
    let twin = twin(name)?;
    Some(KernelSource {
        name: name.into(),
        image: IMAGE.map(Bytes::from_static),
        twin: Some(Arc::new(move |grid: [u32; 3], arguments: &mut [HostArgument<'_>]| {
            twin(grid, arguments).ok_or_else(|| "the arguments are not the kernel's".to_owned())
        }) as Twin),
    })
}

/// A twin over a launch's arguments; `None` when they are of other kinds or do not fit each other.
type Run = fn([u32; 3], Arguments<'_, '_>) -> Option<()>;

fn twin(name: &str) -> Option<Run> {
    Some(match name {
        "gather" => |_, arguments| match arguments {
            [HostArgument::ReadTable(sources), _, _, HostArgument::Write(batch), _] => {
                gather::gather(sources.iter().copied(), batch);
                Some(())
            }
            _ => None,
        },
        "scatter" => |_, arguments| match arguments {
            [HostArgument::WriteTable(destinations), _, _, HostArgument::Read(batch), _] => {
                gather::scatter(batch, destinations.iter_mut().map(|place| &mut **place));
                Some(())
            }
            _ => None,
        },
        "narrow_u8" => narrow::<u8>,
        "narrow_i8" => narrow::<i8>,
        "narrow_f16" => narrow::<f16>,
        "narrow_bf16" => narrow::<bf16>,
        "widen_u8" => widen::<u8>,
        "widen_i8" => widen::<i8>,
        "widen_f16" => widen::<f16>,
        "widen_bf16" => widen::<bf16>,
        "image_u8" => pictures::<u8>,
        "image_f32" => pictures::<f32>,
        "image_f16" => pictures::<f16>,
        "image_bf16" => pictures::<bf16>,
        "softmax" => |_, arguments| rows(arguments, softmax::softmax),
        "log_softmax" => |_, arguments| rows(arguments, softmax::log_softmax),
        "top_k" => largest,
        "argmax" => |_, arguments| match arguments {
            [HostArgument::Read(from), HostArgument::Write(places), columns] => {
                let columns = u32_of(columns)? as usize;
                top_k::argmax(read(from)?, columns, write(places)?);
                Some(())
            }
            _ => None,
        },
        "nms" => suppress,
        "nms_results" => best,
        "pad_1" => padded::<u8>,
        "pad_2" => padded::<u16>,
        "pad_4" => padded::<u32>,
        "pad_8" => padded::<u64>,
        "unpad_1" => unpadded::<u8>,
        "unpad_2" => unpadded::<u16>,
        "unpad_4" => unpadded::<u32>,
        "unpad_8" => unpadded::<u64>,
        "pad_mask" => masked,
        "take_1" => taken::<u8>,
        "take_2" => taken::<u16>,
        "take_4" => taken::<u32>,
        "take_8" => taken::<u64>,
        "check_indices" => checked,
        _ => return None,
    })
}

fn read<T: Pod>(bytes: &[u8]) -> Option<&[T]> {
    try_cast_slice(bytes).ok()
}

fn write<T: Pod>(bytes: &mut [u8]) -> Option<&mut [T]> {
    try_cast_slice_mut(bytes).ok()
}

fn u32_of(argument: &HostArgument<'_>) -> Option<u32> {
    match argument {
        HostArgument::Scalar(Scalar::U32(number)) => Some(*number),
        _ => None,
    }
}

fn u64_of(argument: &HostArgument<'_>) -> Option<u64> {
    match argument {
        HostArgument::Scalar(Scalar::U64(number)) => Some(*number),
        _ => None,
    }
}

fn f32_of(argument: &HostArgument<'_>) -> Option<f32> {
    match argument {
        HostArgument::Scalar(Scalar::F32(number)) => Some(*number),
        _ => None,
    }
}

fn narrow<T: Narrow + Pod>(_: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [HostArgument::Read(from), HostArgument::Write(to), count, scale, zero_point] = arguments
    else {
        return None;
    };
    let count = usize::try_from(u64_of(count)?).ok()?;
    let (from, to) = (read(from)?.get(..count)?, write(to)?.get_mut(..count)?);
    T::narrow(from, to, f32_of(scale)?, f32_of(zero_point)?);
    Some(())
}

fn widen<T: Narrow + Pod>(_: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [HostArgument::Read(from), HostArgument::Write(to), count, scale, zero_point] = arguments
    else {
        return None;
    };
    let count = usize::try_from(u64_of(count)?).ok()?;
    let (from, to) = (read(from)?.get(..count)?, write(to)?.get_mut(..count)?);
    <T as Narrow>::widen(from, to, f32_of(scale)?, f32_of(zero_point)?);
    Some(())
}

fn pictures<T: Element + Pod>(_: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [
        HostArgument::ReadTable(pixels),
        HostArgument::Read(pictures),
        HostArgument::Read(target),
        HostArgument::Write(output),
    ] = arguments
    else {
        return None;
    };
    let (pictures, target) = (read::<Picture>(pictures)?, read::<Target>(target)?.first()?);
    let outputs = write::<T>(output)?.chunks_exact_mut(target.elements().max(1));
    let mut scratch = Scratch::default();
    for ((pixels, picture), output) in pixels.iter().zip(pictures).zip(outputs) {
        image::picture(pixels, picture, target, &mut scratch, output).ok()?;
    }
    Some(())
}

fn rows(arguments: Arguments<'_, '_>, run: fn(&[f32], &mut [f32], usize)) -> Option<()> {
    let [HostArgument::Read(from), HostArgument::Write(to), columns] = arguments else {
        return None;
    };
    run(read(from)?, write(to)?, u32_of(columns)? as usize);
    Some(())
}

fn largest(_: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [
        HostArgument::Read(from),
        HostArgument::Write(values),
        HostArgument::Write(places),
        columns,
        k,
        _,
    ] = arguments
    else {
        return None;
    };
    let (columns, k) = (u32_of(columns)? as usize, u32_of(k)? as usize);
    if k > columns {
        return None;
    }
    top_k::top_k(read(from)?, columns, k, write(values)?, write(places)?);
    Some(())
}

fn suppress([images, ..]: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [
        HostArgument::Read(boxes),
        HostArgument::Read(scores),
        HostArgument::Read(candidates),
        box_count,
        class_count,
        candidate_count,
        overlap_max,
        score_min,
        kept_max,
        centred,
        any_class,
        HostArgument::Write(kept),
        HostArgument::Write(counts),
    ] = arguments
    else {
        return None;
    };
    let [box_count, classes, candidate_count, kept_max] =
        [&*box_count, class_count, candidate_count, kept_max].map(u32_of);
    let rule = Rule {
        overlap_max: f32_of(overlap_max)?,
        score_min: f32_of(score_min)?,
        kept_max: kept_max? as usize,
        centred: u32_of(centred)? != 0,
        any_class: u32_of(any_class)? != 0,
    };
    let (count, classes) = (box_count? as usize, classes? as usize);
    let candidate_count = candidate_count? as usize;
    let (boxes, scores) = (read::<[f32; 4]>(boxes)?, read::<f32>(scores)?);
    let (candidates, counts) = (read::<i64>(candidates)?, write::<i32>(counts)?);
    let kept = write::<i64>(kept)?;
    for image in 0..images as usize {
        let of_image = |each: usize| image * each..(image + 1) * each;
        let best = nms::nms(
            boxes.get(of_image(count))?,
            scores.get(of_image(count * classes))?,
            classes,
            candidates.get(of_image(candidate_count))?,
            &rule,
        );
        let (there, rest) = kept.get_mut(of_image(rule.kept_max))?.split_at_mut(best.len());
        there.copy_from_slice(&best);
        rest.fill(-1);
        *counts.get_mut(image)? = i32::try_from(best.len()).ok()?;
    }
    Some(())
}

fn best(_: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [
        HostArgument::Read(boxes),
        HostArgument::Read(scores),
        HostArgument::Read(kept),
        images,
        box_count,
        class_count,
        kept_max,
        HostArgument::Write(best_boxes),
        HostArgument::Write(best_scores),
        HostArgument::Write(best_classes),
    ] = arguments
    else {
        return None;
    };
    let [images, count, classes, kept_max] =
        [&*images, box_count, class_count, kept_max].map(|number| Some(u32_of(number)? as usize));
    let (images, count, classes, kept_max) = (images?, count?, classes?, kept_max?);
    let best = Best {
        boxes: write(best_boxes)?,
        scores: write(best_scores)?,
        classes: write(best_classes)?,
    };
    let kept = read::<i64>(kept)?.get(..images * kept_max)?;
    nms::results(read(boxes)?, read(scores)?, kept, [count, classes, kept_max], best);
    Some(())
}

/// Where sequences begin and end, if that is inside of `len` elements.
fn offsets(bytes: &[u8], len: usize) -> Option<Vec<usize>> {
    let offsets = read::<u64>(bytes)?.iter().map(|&offset| usize::try_from(offset).ok());
    let offsets = offsets.collect::<Option<Vec<_>>>()?;
    (offsets.is_sorted() && offsets.last().is_none_or(|&last| last <= len)).then_some(offsets)
}

fn padded<T: Pod>(_: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [
        HostArgument::Read(from),
        HostArgument::Read(bounds),
        HostArgument::Write(to),
        length,
        HostArgument::Scalar(value),
    ] = arguments
    else {
        return None;
    };
    let bits = match value {
        Scalar::U32(value) => u64::from(*value),
        Scalar::U64(value) => *value,
        _ => return None,
    };
    let value: T = bytemuck::pod_read_unaligned(bits.to_le_bytes().get(..size_of::<T>())?);
    let (from, length) = (read::<T>(from)?, usize::try_from(u64_of(length)?).ok()?);
    pad::pad(from, &offsets(bounds, from.len())?, write(to)?, length, value);
    Some(())
}

fn unpadded<T: Pod>(_: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [HostArgument::Read(from), HostArgument::Read(bounds), HostArgument::Write(to), length] =
        arguments
    else {
        return None;
    };
    let (to, length) = (write::<T>(to)?, usize::try_from(u64_of(length)?).ok()?);
    pad::unpad(read(from)?, &offsets(bounds, to.len())?, to, length);
    Some(())
}

fn masked(_: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [HostArgument::Read(bounds), HostArgument::Write(to), length] = arguments else {
        return None;
    };
    let length = usize::try_from(u64_of(length)?).ok()?;
    pad::mask(&offsets(bounds, usize::MAX)?, write(to)?, length);
    Some(())
}

/// Indices of this many bytes each.
fn indices(bytes: &[u8], each: &HostArgument<'_>) -> Option<Vec<i64>> {
    match u32_of(each)? {
        4 => Some(read::<i32>(bytes)?.iter().copied().map(i64::from).collect()),
        8 => Some(read(bytes)?.to_vec()),
        _ => None,
    }
}

fn taken<T: Pod + Default>(_: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [
        HostArgument::Read(entries),
        HostArgument::Read(named),
        HostArgument::Write(to),
        index_bytes,
        _,
        count,
        wanted,
        each,
    ] = arguments
    else {
        return None;
    };
    let [count, wanted, each] =
        [&*count, wanted, each].map(|number| usize::try_from(u64_of(number)?).ok());
    let named = indices(named, index_bytes)?;
    take::take(read::<T>(entries)?, &named, write(to)?, [count?, wanted?, each?]);
    Some(())
}

fn checked([rows, ..]: [u32; 3], arguments: Arguments<'_, '_>) -> Option<()> {
    let [HostArgument::Read(named), HostArgument::Write(faults), index_bytes, count, wanted] =
        arguments
    else {
        return None;
    };
    let (count, wanted) = (usize::try_from(u64_of(count)?).ok()?, u32_of(wanted)? as usize);
    let (named, faults) = (indices(named, index_bytes)?, write::<[i64; 2]>(faults)?);
    for (row, fault) in faults.get_mut(..rows as usize)?.iter_mut().enumerate() {
        let row = named.get(row * wanted..(row + 1) * wanted)?;
        let first = take::first_fault(row, count);
        *fault = first.map_or([-1, 0], |(place, index)| [place as i64, index]);
    }
    Some(())
}
