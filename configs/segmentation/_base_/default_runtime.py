# Runtime settings shared by all segmentation configs.
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
visualizer = dict(
    _scope_='mmseg',
    type='SegLocalVisualizer',
    name='visualizer',
    alpha=0.5,
    vis_backends=[dict(type='LocalVisBackend')],
)
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(_scope_='mmseg', type='SegTTAModel')
