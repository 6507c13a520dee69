"""Spectrum: orthonormal, exact, and the best approximation of its rank."""

import torch

from lifelong.numerics.spectrum import rank_reduced, triples


def matrix(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def test_triples_give_the_matrix_back_and_are_orthonormal():
    for shape in ((6, 5), (5, 9), (32, 64)):
        found = triples(matrix(*shape))
        torch.testing.assert_close(found.product(), matrix(*shape), atol=1e-5, rtol=0)
        eye = torch.eye(min(shape))
        torch.testing.assert_close(found.up.T @ found.up, eye, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.down @ found.down.T, eye, atol=1e-5, rtol=0)
        assert (found.sizes.diff() <= 0).all()


def test_parts_add_up_and_share_no_memory():
    found = triples(matrix(8, 6))
    strong, weak = found.part(0, 2), found.part(2)
    torch.testing.assert_close(strong.product() + weak.product(), matrix(8, 6), atol=1e-5, rtol=0)
    strong.sizes.zero_()
    assert found.sizes.min() > 0
    assert all(tensor.is_contiguous() for tensor in weak)
    assert found.part(0, 0).product().shape == (8, 6) and not found.part(0, 0).product().any()


def test_rank_reduction_errs_by_the_singular_values_left_out():
    whole = matrix(12, 7)
    sizes = torch.linalg.svdvals(whole.double())
    for rank in (1, 3, 6):
        reduced = rank_reduced(whole, rank)
        assert torch.linalg.matrix_rank(reduced, rtol=1e-4) == rank
        error = float((whole - reduced).norm())
        torch.testing.assert_close(error, float(sizes[rank:].norm()), atol=1e-4, rtol=1e-4)
        other = whole.clone()
        other[rank:] = 0  # the control: another matrix of that rank is farther
        assert float((whole - other).norm()) > error
    assert torch.equal(rank_reduced(whole, 7), whole)
