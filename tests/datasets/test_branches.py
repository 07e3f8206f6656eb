from mmdet_sssd.datasets.branches import labelled_dataset

PACK = dict(type='PackDetInputs')
LOAD = dict(type='LoadImageFromFile')
PLAIN = dict(type='CocoDataset', ann_file='a.json', pipeline=[LOAD, PACK])


def with_branch(ann_file, **branch):
    end = dict(type='MultiBranch', branch_field=['sup', 'unsup'], **branch)
    return dict(type='CocoDataset', ann_file=ann_file, pipeline=[LOAD, end])


def concatenated(*datasets):
    return dict(type='ConcatDataset', datasets=list(datasets))


def test_configs_without_branches_do_not_change():
    for dataset in (PLAIN, concatenated(PLAIN, PLAIN), dict(type='RepeatDataset', dataset=PLAIN)):
        assert labelled_dataset(dataset) == dataset


def test_the_labelled_branch_becomes_the_pipeline_and_unlabelled_data_sets_go():
    unlabelled = with_branch('b.json', unsup=PACK)
    for labelled in (with_branch('a.json', sup=PACK), with_branch('a.json', sup=[PACK])):
        assert labelled_dataset(concatenated(labelled, unlabelled)) == PLAIN
        both = concatenated(labelled, unlabelled, PLAIN)
        assert labelled_dataset(both) == concatenated(PLAIN, PLAIN)
        repeated = dict(type='RepeatDataset', dataset=labelled)
        assert labelled_dataset(repeated) == dict(type='RepeatDataset', dataset=PLAIN)
    assert labelled_dataset(concatenated(unlabelled)) is None
    assert labelled_dataset(dict(type='RepeatDataset', dataset=unlabelled)) is None
