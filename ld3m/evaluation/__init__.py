"""Evaluation: networks trained on a distilled set, and on as many real images, tested on real images."""

from ld3m.config import TeacherTraining as TeacherTraining
from ld3m.evaluation.judge import evaluate as evaluate
from ld3m.evaluation.protocols import PROTOCOLS as PROTOCOLS
from ld3m.evaluation.protocols import Protocol as Protocol
from ld3m.evaluation.teacher import Teacher as Teacher
from ld3m.evaluation.teacher import load_teacher as load_teacher
from ld3m.evaluation.teacher_training import train_teacher as train_teacher
from ld3m.runs.report import Report as Report
from ld3m.runs.report import save_report as save_report
