//! Strings between the wire's form, each behind its length as a little-endian `u32`, and that of
//! ONNX Runtime, which keeps them as objects of its own.

use ort_sys::{ONNXTensorElementDataType, OrtValue};

use super::{execution::RunError, handle::Handle, library::Runtime};
use crate::memory::{Buffer, BufferPool};

const PREFIX: usize = size_of::<u32>();

/// Makes a tensor of `shape` of the strings in `wire`.
pub(super) fn to_value(
    runtime: &Runtime,
    shape: &[i64],
    wire: &[u8],
) -> Result<Handle<OrtValue>, RunError> {
    let api = runtime.api;
    // The count is checked before ONNX Runtime allocates by it.
    let count = strings(wire).count();
    let expected = shape.iter().try_fold(1_i64, |count, &dim| count.checked_mul(dim));
    if strings(wire).any(|string| string.is_none())
        || expected.and_then(|count| usize::try_from(count).ok()) != Some(count)
    {
        return Err(RunError::MalformedStrings { count });
    }
    // SAFETY: creating function and release belong together; the shape lives through the call.
    let value = unsafe {
        Handle::create(api, api.ReleaseValue, |out| {
            (api.CreateTensorAsOrtValue)(
                runtime.allocator.as_ptr(),
                shape.as_ptr(),
                shape.len(),
                ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
                out,
            )
        })
    }?;
    for (index, string) in strings(wire).flatten().enumerate() {
        let mut place = std::ptr::null_mut();
        // SAFETY: the value is a tensor of strings with more than `index` elements.
        let status = unsafe {
            (api.GetResizedStringTensorElementBuffer)(
                value.as_ptr(),
                index,
                string.len(),
                &mut place,
            )
        };
        // SAFETY: the status is that of the call above.
        unsafe { runtime.check(status) }?;
        // SAFETY: the place was made for this many bytes, in memory of ONNX Runtime.
        unsafe { std::ptr::copy_nonoverlapping(string.as_ptr(), place.cast(), string.len()) };
    }
    Ok(value)
}

/// Writes the `count` strings of a tensor in the wire's form.
///
/// # Safety
/// `value` is a tensor of strings with `count` elements.
pub(super) unsafe fn from_value(
    runtime: &Runtime,
    value: &Handle<OrtValue>,
    count: usize,
    pool: &BufferPool,
) -> Result<Buffer, RunError> {
    let api = runtime.api;
    let mut content_len = 0;
    // SAFETY: the value is a tensor of strings.
    let status = unsafe { (api.GetStringTensorDataLength)(value.as_ptr(), &mut content_len) };
    // SAFETY: the status is that of the call above.
    unsafe { runtime.check(status) }?;
    let prefixes = count.saturating_mul(PREFIX);
    let mut buffer = pool.allocate(prefixes.saturating_add(content_len))?;
    if count == 0 {
        return Ok(buffer);
    }
    let mut offsets = vec![0_usize; count];
    let content = &mut buffer[prefixes..];
    // SAFETY: `content` has the length just told, and `offsets` one place per string.
    let status = unsafe {
        (api.GetStringTensorContent)(
            value.as_ptr(),
            content.as_mut_ptr().cast(),
            content.len(),
            offsets.as_mut_ptr(),
            count,
        )
    };
    // SAFETY: the status is that of the call above.
    unsafe { runtime.check(status) }?;
    spread(&mut buffer, &offsets)?;
    Ok(buffer)
}

/// Puts each string's length before it. The strings lie end to end at the end of `buffer`, with room
/// for all lengths before them; string `i` moves forward by the room of the lengths that follow its
/// own, so that no string is overwritten before its turn.
fn spread(buffer: &mut [u8], offsets: &[usize]) -> Result<(), RunError> {
    let prefixes = offsets.len() * PREFIX;
    let content_len = buffer.len() - prefixes;
    for (index, &start) in offsets.iter().enumerate() {
        let end = offsets.get(index + 1).copied().unwrap_or(content_len);
        let length = u32::try_from(end - start).map_err(|_| RunError::StringTooLong)?;
        let target = index * PREFIX + start;
        buffer[target..target + PREFIX].copy_from_slice(&length.to_le_bytes());
        buffer.copy_within(prefixes + start..prefixes + end, target + PREFIX);
    }
    Ok(())
}

/// The strings of the wire's form; the last is `None` if it is cut short.
fn strings(wire: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = Some(wire).filter(|wire| !wire.is_empty());
    std::iter::from_fn(move || {
        let here = rest?;
        let parsed = here.split_first_chunk::<PREFIX>().and_then(|(prefix, tail)| {
            tail.split_at_checked(usize::try_from(u32::from_le_bytes(*prefix)).ok()?)
        });
        rest = parsed.map(|(_, tail)| tail).filter(|tail| !tail.is_empty());
        Some(parsed.map(|(string, _)| string))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire_of(strings: &[Vec<u8>]) -> Vec<u8> {
        strings
            .iter()
            .flat_map(|string| {
                (string.len() as u32).to_le_bytes().into_iter().chain(string.iter().copied())
            })
            .collect()
    }

    proptest! {
        #[test]
        fn spreading_gives_the_wire_form_and_reading_it_gives_the_strings(
            given: Vec<Vec<u8>>,
        ) {
            let mut offsets = Vec::new();
            let mut buffer = vec![0; given.len() * PREFIX];
            for string in &given {
                offsets.push(buffer.len() - given.len() * PREFIX);
                buffer.extend_from_slice(string);
            }
            spread(&mut buffer, &offsets).unwrap();
            prop_assert_eq!(&buffer, &wire_of(&given));
            let read: Option<Vec<&[u8]>> = strings(&buffer).collect();
            prop_assert_eq!(read.unwrap(), given);
        }
    }

    #[test]
    fn what_is_cut_short_is_told() {
        for wire in [&[1, 0, 0][..], &[2, 0, 0, 0, b'x'], &[0, 0, 0, 0, 9]] {
            assert_eq!(strings(wire).last(), Some(None), "{wire:?}");
        }
        assert_eq!(strings(&[]).next(), None);
    }
}
