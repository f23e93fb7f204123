"""Several processes on the CPU compute the same as one; distributed_jobs.py has their jobs."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
JOBS = Path(__file__).parent / 'distributed_jobs.py'
STEPS = 4
# Sums of a few hundred terms in another order, in STEPS updates: 2 ** 9 roundings of fp32.
TOLERANCE = 512 * torch.finfo(torch.float32).eps

NO_VALIDATION = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)
# Each process has its own augmentation, as it is with workers.
TRAINING = dict(
    NO_VALIDATION,
    **{
        'randomness': dict(seed=0, diff_rank_seed=True),
        'default_hooks.checkpoint.interval': 1000,
        'default_hooks.checkpoint.save_last': False,
        'default_hooks.logger': None,
    },
)
# Three images do not divide by the number of processes: a sampler repeats some.
EVALUATION = {'test_dataloader.dataset.indices': 3}


def plan(classification, detection, segmentation, fsdp, folder):
    """Return the jobs of all tests by name: function, processes, arguments."""

    def train(config, world, **options):
        arguments = dict(config=str(config), options={**TRAINING, **options})
        return 'train', world, arguments

    def classify(world, batch, **options):
        name = 'train_dataloader.batch_size'
        return train(
            classification,
            world,
            **{name: batch, 'train_cfg.max_epochs': STEPS, 'randomness': dict(seed=3)},
            **options,
        )

    def evaluate(config, world, model):
        return 'evaluate', world, dict(config=str(config), model=model, options=EVALUATION)

    jobs = {
        'classify_1': classify(1, 8),
        'classify_2': classify(2, 4),
        'classify_4': classify(4, 2),
        'classify_half': classify(1, 4, **{'train_dataloader.dataset.indices': 4}),
        'out_indices': ('out_indices', 2, {}),
        'gradients': ('gradients', 2, {}),
        'batch_norm': ('batch_norm', 2, {}),
    }
    options = {'train_dataloader.batch_size': 2}
    jobs['detect_2'] = train(detection, 2, **options, **{'train_cfg.max_epochs': 3})
    jobs['segment_2'] = train(segmentation, 2, **options, **{'train_cfg.max_iters': 3})
    jobs.update(plan_order(folder))
    configs = dict(classify=classification, detect=detection, segment=segmentation)
    for task, model in stock_heads().items():
        for function in ('refused', 'train'):
            arguments = train(configs[task], 2, **options, **model[function])[2]
            jobs[f'{task}_{function}'] = function, 2, arguments
    for rank, kind in MISBEHAVIOR:
        jobs[f'rank {rank} {kind}'] = 'misbehave', 3, dict(rank=rank, kind=kind)
    sharded = {
        'train_dataloader.batch_size': 2,
        'train_cfg.max_epochs': 3,
        'default_hooks.checkpoint.interval': 3,
        'load_from': str(folder / 'detect_2' / 'before.pth'),
    }
    jobs['fsdp'] = ('fsdp', 2, train(fsdp, 2, **sharded)[2])
    for world in (1, 2):
        jobs[f'detect_eval_{world}'] = evaluate(detection, world, 'OracleDetector')
        jobs[f'segment_eval_{world}'] = evaluate(segmentation, world, 'OracleSegmentor')
    return jobs


def stock_heads():
    """Return options of stock models that are refused, and of the same with used maps alone."""
    from mmengine.hub import get_config

    import mmvmamba.registry  # noqa: F401  (resolves mmseg::)

    retinanet = get_config('mmdet::_base_/models/retinanet_r50_fpn.py').model
    fcn = get_config('mmseg::_base_/models/fcn_r50-d8.py').model
    thin = dict(channels=16, num_classes=3, norm_cfg=dict(type='BN'))
    backbone = dict(type='mmvmamba.VMamba', dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    retinanet.backbone, retinanet['_delete_'] = backbone, True
    retinanet.neck.update(in_channels=[8, 16, 24, 32], out_channels=16)
    retinanet.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=2)
    detect = {'model': retinanet.to_dict(), 'train_cfg.max_epochs': 2}
    heads = {
        f'model.{name}': {**fcn[name], **thin, 'in_channels': channels, '_delete_': True}
        for name, channels in (('decode_head', 32), ('auxiliary_head', 24))
    }
    assert (retinanet.neck.start_level, heads['model.decode_head']['in_index']) == (1, 3)
    return {
        'classify': dict(
            refused={'model.backbone.out_indices': (0, 1, 2, 3)},
            train={
                'model.backbone.out_indices': (0, 1, 2, 3),
                'find_unused_parameters': True,
            },
        ),
        'detect': dict(
            refused=detect,
            train={
                **detect,
                'model.backbone.out_indices': (1, 2, 3),
                'model.neck.in_channels': [16, 24, 32],
                'model.neck.start_level': 0,
            },
        ),
        'segment': dict(
            refused=heads,
            train={
                **heads,
                'model.backbone.out_indices': (2, 3),
                'model.decode_head.in_index': 1,
                'model.auxiliary_head.in_index': 0,
            },
        ),
    }


#: Six iterations an epoch with a global batch of four, and passes over the data without an end.
LOOPS = {
    'epochs': dict(
        sampler='DefaultSampler', train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2)
    ),
    'endless': dict(
        sampler='InfiniteSampler', train_cfg=dict(type='IterBasedTrainLoop', max_iters=12)
    ),
}
GLOBAL_BATCH = 4
MISBEHAVIOR = [(0, 'hangs'), (2, 'hangs'), (1, 'is slow'), (1, 'ends')]


def plan_order(folder):
    """Return runs of 1, 2 and 4 processes, and a run that goes on with other numbers of them."""

    def resume(name, world, iteration, batch_size, **loop):
        resumed = str(folder / name / 'work_dir' / f'iter_{iteration}.pth')
        return 'order', world, dict(batch_size=batch_size, resumed=resumed, **loop)

    jobs = {}
    for kind, loop in LOOPS.items():
        for world in (1, 2, 4):
            options = dict(batch_size=GLOBAL_BATCH // world, **loop)
            jobs[f'order_{kind}_{world}'] = 'order', world, options
        jobs[f'order_{kind}_2_1'] = resume(f'order_{kind}_2', 1, 3, 4, **loop)
        jobs[f'order_{kind}_2_1_4'] = resume(f'order_{kind}_2_1', 4, 5, 1, **loop)
    # The same config with two samples in each process: global batches of 4, 2 and 8.
    jobs['order_sizes_1'] = resume('order_epochs_2', 1, 2, 2, **LOOPS['epochs'])
    jobs['order_sizes_4'] = resume('order_sizes_1', 4, 4, 2, **LOOPS['epochs'])
    return jobs


@pytest.fixture(scope='module')
def fsdp_config(detection_config, tmp_path_factory):
    """Config of the repository, as small as the other detector."""
    text, path = detection_config.read_text(), tmp_path_factory.mktemp('configs') / 'fsdp.py'
    for old, new in (
        (
            'mask_rcnn/mask-rcnn_vmamba-t_fpn_1x_coco.py',
            'fsdp/mask-rcnn_vmamba-b_fpn_fsdp-1x_coco.py',
        ),
        ('backbone=dict(', "backbone=dict(arch='tiny', drop_path_rate=0.2, "),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.fixture(scope='module')
def results(
    classification_config, detection_config, segmentation_config, fsdp_config, tmp_path_factory
):
    """Return the result of each process of a job."""
    folder = tmp_path_factory.mktemp('jobs')
    jobs = plan(classification_config, detection_config, segmentation_config, fsdp_config, folder)
    content = [
        dict(function=function, world=world, arguments=arguments, folder=str(folder / name))
        for name, (function, world, arguments) in jobs.items()
    ]
    (folder / 'plan.json').write_text(json.dumps(content))
    env = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    command = [sys.executable, str(JOBS), str(folder / 'plan.json')]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def load(name):
        ranks = []
        for rank in range(jobs[name][1]):
            path = folder / name / f'{rank}.pt'
            assert path.exists(), (folder / name / f'{rank}.log').read_text()[-3000:]
            ranks.append(torch.load(path, weights_only=False))
        return ranks

    load.folder = folder
    return load


def distance(state, other):
    """Return the largest difference of two models' tensors, relative to their largest values."""
    assert state.keys() == other.keys()
    return max(
        ((state[k].double() - other[k].double()).abs().max() / other[k].double().abs().max()).item()
        for k in state
        if other[k].abs().max() > 0
    )


# ---- training ----


@pytest.mark.parametrize('world', [2, 4])
def test_processes_with_a_part_of_the_batch_train_as_one_does(results, world):
    (one,) = results('classify_1')
    ranks = results(f'classify_{world}')
    for rank in ranks:
        assert distance(rank['before'], one['before']) == 0
        assert distance(rank['state'], one['state']) < TOLERANCE
    assert distance(one['state'], one['before']) > 1e3 * TOLERANCE
    # The images of a step are shared out, so their losses differ and have the same mean.
    losses = torch.tensor([rank['losses'] for rank in ranks])
    assert losses.shape == (world, STEPS)
    assert (losses[0] - losses[1]).abs().min() > 1e-4
    torch.testing.assert_close(losses.mean(0), torch.tensor(one['losses']), rtol=1e-5, atol=1e-6)


def test_a_part_of_the_images_alone_trains_otherwise(results):
    """A tolerance at which gradients without averaging fail."""
    (one,), (half,) = results('classify_1'), results('classify_half')
    assert distance(half['state'], one['state']) > 100 * TOLERANCE


@pytest.mark.parametrize('task', ['detect', 'segment'])
def test_weights_are_the_same_in_all_processes(results, task):
    ranks = results(f'{task}_2')
    assert len(ranks) == 2
    assert distance(ranks[0]['before'], ranks[0]['state']) > 1e-5
    for rank in ranks[1:]:
        assert rank['losses'] != ranks[0]['losses']
        for name, value in rank['state'].items():
            assert torch.equal(value, ranks[0]['state'][name]), name


def test_statistics_of_batch_norm_are_those_of_all_images(results):
    """The means are; the variance is the average of those of the processes."""
    ranks = results('batch_norm')
    layer = torch.nn.BatchNorm2d(3).train()
    layer(torch.cat([rank['images'] for rank in ranks]))
    own = {k: torch.stack([rank['own'][k] for rank in ranks]) for k in ranks[0]['own']}
    assert (own['running_mean'][0] - layer.running_mean).abs().min() > 1e-4
    for rank in ranks:
        averaged = rank['averaged']
        torch.testing.assert_close(averaged['running_mean'], layer.running_mean)
        torch.testing.assert_close(averaged['running_var'], own['running_var'].mean(0))


# ---- order of samples ----


def global_steps(results, name):
    """Return the samples of each iteration over all processes: id and augmentation."""
    ranks = [rank['samples'] for rank in results(name)]
    steps = {i: zip(*(rank[i] for rank in ranks), strict=True) for i in ranks[0]}
    return {i: [sample for several in step for sample in several] for i, step in steps.items()}


@pytest.mark.parametrize('kind', LOOPS)
@pytest.mark.parametrize('world', [2, 4])
def test_the_order_of_samples_is_the_same_for_any_number_of_processes(results, kind, world):
    """Ids and augmentations, as the processes log them."""
    one, several = (
        global_steps(results, f'order_{kind}_1'),
        global_steps(results, f'order_{kind}_{world}'),
    )
    assert list(several) == list(one) == list(range(12))
    last = {5, 11} if kind == 'epochs' else {}
    for iteration, samples in one.items():
        found = several[iteration]
        assert found[: len(samples)] == samples
        # Two samples are left for the last step of an epoch; four processes fill it up.
        assert len(found) == (max(2, world) if iteration in last else 4)
    log = (results.folder / f'order_{kind}_{world}' / f'{world - 1}.log').read_text()
    ids = [int(index) for index, _ in several[7][world - 1 :: world]]
    assert f'iteration 7: samples {ids}' in log


@pytest.mark.parametrize('kind', LOOPS)
def test_a_run_of_two_then_one_then_four_processes_keeps_the_order(results, kind):
    whole = global_steps(results, f'order_{kind}_1')
    chain = {k: v for k, v in global_steps(results, f'order_{kind}_2').items() if k < 3}
    one = global_steps(results, f'order_{kind}_2_1')
    assert min(one) == 3
    chain |= {k: v for k, v in one.items() if k < 5}
    four = global_steps(results, f'order_{kind}_2_1_4')
    assert min(four) == 5
    chain |= four
    assert {k: v[: len(whole[k])] for k, v in chain.items()} == whole


def test_other_global_batches_see_each_sample_once_in_an_epoch(results):
    """Two samples in each process, which are first two, then one, then four."""
    first = global_steps(results, 'order_epochs_2')
    second = global_steps(results, 'order_sizes_1')
    third = global_steps(results, 'order_sizes_4')
    steps = [first[0], first[1], second[2], second[3], *third.values()]
    assert list(third)[0] == 4
    ids = [int(index) for step in steps for index, _ in step]
    # 4 + 4 + 2 + 2 samples, then 8 and the last two, which four processes fill up.
    assert list(map(len, steps[:6])) == [4, 4, 2, 2, 8, 4]
    assert sorted(ids[:22]) == list(range(22))
    # The second epoch, of global batches of 8, six of which are left.
    assert list(map(len, steps[6:])) == [8, 8, 8]
    assert sorted(ids[24:46]) == list(range(22))


# ---- ranks that hang ----


@pytest.mark.parametrize(('culprit', 'kind'), MISBEHAVIOR)
def test_a_rank_that_hangs_is_named(results, culprit, kind):
    """On rank 0, after gloo's timeout; one that is slow or has ended is not said to hang."""
    ranks = results(f'rank {culprit} {kind}')
    process = f'rank {culprit} (process {ranks[culprit]["pid"]} on {socket.gethostname()})'
    slow = 'all processes answered afterwards'
    expected = {
        'hangs': (f'{process} did not answer', 'if it has none, rank 0 hangs'),
        'is slow': (slow, slow),
        'ends': ('another process has ended', 'see the message of rank 0'),
    }
    for rank, result in enumerate(ranks):
        said = result['said']
        assert '\n' not in said
        if rank == culprit and kind != 'is slow':
            assert said == kind
        else:
            assert said.startswith('a collective operation failed (')
            assert expected[kind][rank > 0] in said
            assert (process in said) is (kind == 'hangs' and rank == 0)


# ---- evaluation ----


@pytest.mark.parametrize(
    ('task', 'figures'),
    [('detect', ('coco/bbox_mAP', 'coco/segm_mAP')), ('segment', ('mIoU', 'mAcc'))],
)
def test_evaluation_in_two_processes(results, task, figures):
    (one,) = results(f'{task}_eval_1')
    for figure in figures:
        assert 0.05 < one['metrics'][figure] / (100 if task == 'segment' else 1) < 0.95
    ranks = results(f'{task}_eval_2')
    for rank in ranks:
        assert rank['metrics'] == one['metrics']
    # An image was seen twice, but counts once.
    seen = [path for rank in ranks for path in rank['seen']]
    assert len(seen) == 4 and set(seen) == set(one['seen']) and len(one['seen']) == 3
    with open(results.folder / f'{task}_eval_2' / 'predictions.pkl', 'rb') as file:
        counted = [sample['img_path'] for sample in pickle.load(file)]
    assert sorted(counted) == sorted(one['seen'])


# ---- DistributedDataParallel ----


def test_any_out_indices_without_find_unused_parameters(results):
    for rank in results('out_indices'):
        assert len(rank['steps']) == 15 * 2


@pytest.mark.parametrize(
    ('task', 'unused', 'used'),
    [('classify', '012', '(3,)'), ('detect', '0', '(1, 2, 3)'), ('segment', '01', '(2, 3)')],
)
def test_stock_heads_that_do_not_use_all_maps(results, task, unused, used):
    """They are refused after a step, and train with the ``out_indices`` of the message."""
    for rank in results(f'{task}_refused'):
        names = [f'backbone.outnorm{i}.{name}' for i in unused for name in ('weight', 'bias')]
        assert rank['said'].startswith(', '.join(names[:4]))
        assert ('and 2 more' in rank['said']) is (len(names) > 4)
        assert f'out_indices=(0, 1, 2, 3): set it to {used}, and' in rank['said']
        assert '\n' not in rank['said'] and rank['steps'] == 1
    assert all(len(rank['losses']) >= 2 for rank in results(f'{task}_train'))


def test_checkpointing_gives_equal_gradients(results):
    ranks = results('gradients')
    mean = {k: (ranks[0]['alone'][k] + ranks[1]['alone'][k]) / 2 for k in ranks[0]['alone']}
    assert distance(ranks[0]['alone'], ranks[1]['alone']) > 0.01
    for rank in ranks:
        for name, gradient in rank['plain'].items():
            assert torch.equal(gradient, rank['with_cp'][name]), name
        assert distance(rank['plain'], mean) < 1e-5


# ---- FSDP ----


def test_fsdp_shards_the_blocks(results):
    ranks = results('fsdp')
    folder = results.folder / 'fsdp' / 'work_dir'
    whole = torch.load(folder / 'epoch_3.pth', weights_only=False)['state_dict']
    for rank in ranks:
        assert rank['kind'] == 'FlexibleRunner'
        assert rank['blocks'] == 4
        assert sorted(rank['wrapped']) == ['MaskRCNN', *['VSSBlock'] * 4]
        assert len(rank['losses']) == 3 and torch.tensor(rank['losses']).isfinite().all()
    # Each process holds a part of the weights, and none twice.
    total = sum(rank['shard'] for rank in ranks)
    count = sum(v.numel() for k, v in whole.items())
    assert count <= total < 1.01 * count
    assert 0.4 < ranks[0]['shard'] / total < 0.6


def test_fsdp_trains_as_without_shards(results):
    """Both jobs start from the same file and use the same images."""
    plain = results('detect_2')
    for sharded, rank in zip(results('fsdp'), plain, strict=True):
        assert sharded['losses'] == pytest.approx(rank['losses'], rel=1e-3)
    folder = results.folder / 'fsdp' / 'work_dir'
    whole = torch.load(folder / 'epoch_3.pth', weights_only=False)['state_dict']
    assert distance(whole, plain[0]['before']) > 1e-4
    assert distance(whole, plain[0]['state']) < 1e-3
