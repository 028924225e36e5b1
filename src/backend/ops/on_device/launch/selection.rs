//! Stages that choose among what there is: entries by their numbers, boxes.

use super::{AtWork, Running, Trouble, begin, f32, read, u32, u64, write};
use crate::{
    device::{
        Stream,
        kernels::{nms, take, top_k},
    },
    inference::DataType,
};

impl Running<'_> {
    pub(super) fn gather(
        &mut self,
        at: &AtWork<'_>,
        stream: &mut dyn Stream,
    ) -> Result<(), Trouble> {
        let ((of, entries), (by, indices), to) = (at.input(0)?, at.input(1)?, at.output(0)?);
        let note = self.notes.next().ok_or(Trouble::Missing)?;
        let (count, wanted, each) = (self.number()?, self.number::<u32>()?, self.number()?);
        let size = |datatype: DataType| datatype.size().ok_or(Trouble::Missing);
        let index_bytes = u32(size(by.datatype)? as u32);
        let rows = self.rows as u32;
        let check = begin(at.kernel(0)?, take::check_grid(rows, wanted))
            .with(read(indices))
            .with(write(note))
            .with(index_bytes.clone())
            .with(u64(count))
            .with(u32(wanted));
        stream.launch(check)?;
        if to.is_empty() {
            return Ok(());
        }
        let elements = (to.len() / size(of.datatype)?) as u64;
        let take = begin(at.kernel(1)?, take::grid(elements))
            .with(read(entries))
            .with(read(indices))
            .with(write(to))
            .with(index_bytes)
            .with(u64(rows.into()))
            .with(u64(count))
            .with(u64(wanted.into()))
            .with(u64(each));
        Ok(stream.launch(take)?)
    }

    pub(super) fn nms(
        &mut self,
        at: &AtWork<'_>,
        rule: &nms::Rule,
        stream: &mut dyn Stream,
    ) -> Result<(), Trouble> {
        let ((_, boxes), (_, scores)) = (at.input(0)?, at.input(1)?);
        let (count, classes, candidates) =
            (self.number::<u32>()?, self.number::<u32>()?, self.number()?);
        let mut next = || self.between.next().ok_or(Trouble::Missing);
        let (values, order, kept) = (next()?, next()?, next()?);
        let (rows, kept_max) = (self.rows as u32, rule.kept_max as u32);
        // Of no scores there is none to be had.
        if candidates > 0 {
            let columns = count * classes;
            let largest = begin(at.kernel(0)?, top_k::grid(rows, columns, candidates))
                .with(read(scores))
                .with(write(values))
                .with(write(order))
                .with(u32(columns))
                .with(u32(candidates))
                .with(u32(top_k::capacity(candidates)));
            stream.launch(largest)?;
        }
        let suppress = begin(at.kernel(1)?, nms::grid(rows, candidates))
            .with(read(boxes))
            .with(read(scores))
            .with(read(order))
            .with(u32(count))
            .with(u32(classes))
            .with(u32(candidates))
            .with(f32(rule.overlap_max))
            .with(f32(rule.score_min))
            .with(u32(kept_max))
            .with(u32(rule.centred.into()))
            .with(u32(rule.any_class.into()))
            .with(write(kept))
            .with(write(at.output(3)?));
        stream.launch(suppress)?;
        let results = begin(at.kernel(2)?, nms::results_grid(rows, kept_max))
            .with(read(boxes))
            .with(read(scores))
            .with(read(kept))
            .with(u32(rows))
            .with(u32(count))
            .with(u32(classes))
            .with(u32(kept_max))
            .with(write(at.output(0)?))
            .with(write(at.output(1)?))
            .with(write(at.output(2)?));
        Ok(stream.launch(results)?)
    }
}
