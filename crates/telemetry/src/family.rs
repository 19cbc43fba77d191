//! Metrics with labels of fixed values: every series is made at once, and one is reached by an array index.

use std::fmt;
use std::marker::PhantomData;

use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::family::Family;

use crate::labels::Label;

/// One label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct One<L>(L);

impl<L: Label> EncodeLabelSet for One<L> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        (L::NAME, self.0.as_str()).encode(encoder.encode_label())
    }
}

/// Two labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Two<A, B>(A, B);

impl<A: Label, B: Label> EncodeLabelSet for Two<A, B> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        (A::NAME, self.0.as_str()).encode(encoder.encode_label())?;
        (B::NAME, self.1.as_str()).encode(encoder.encode_label())
    }
}

/// A metric for each value of a label.
#[derive(Debug)]
pub(crate) struct By<L, M> {
    metrics: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M: Clone + Default> By<L, M> {
    pub(crate) fn new(family: &Family<One<L>, M>) -> Self {
        let metrics = L::ALL
            .iter()
            .map(|value| family.get_or_create_owned(&One(*value)))
            .collect();
        Self {
            metrics,
            label: PhantomData,
        }
    }

    pub(crate) fn get(&self, value: L) -> &M {
        &self.metrics[value.index()]
    }
}

/// A metric for each pair of two labels' values.
#[derive(Debug)]
pub(crate) struct ByTwo<A, B, M> {
    metrics: Vec<M>,
    labels: PhantomData<(A, B)>,
}

impl<A: Label, B: Label, M: Clone + Default> ByTwo<A, B, M> {
    pub(crate) fn new(family: &Family<Two<A, B>, M>) -> Self {
        let pairs = A::ALL.iter().flat_map(|a| B::ALL.iter().map(|b| Two(*a, *b)));
        Self {
            metrics: pairs.map(|pair| family.get_or_create_owned(&pair)).collect(),
            labels: PhantomData,
        }
    }

    pub(crate) fn get(&self, a: A, b: B) -> &M {
        &self.metrics[a.index() * B::ALL.len() + b.index()]
    }
}
